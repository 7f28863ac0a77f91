import random
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.planner.pipeline import drive, simulate, timeline
from hpcdl.stage import Flow, Operation

SECONDS = st.floats(0.1, 10)


def one_f_one_b(stages, microbatches):
    """Narayanan et al., SC'21, section 2.2: (m - 1 + p) forwards and backwards of one microbatch on one stage."""
    return microbatches - 1 + stages


@given(SECONDS, st.sampled_from([1.0, 2.0, 3.0]), st.integers(1, 12), st.integers(1, 40))
def test_the_machine_is_1f1b_where_stages_are_equal(f, ratio, stages, microbatches):
    forward, backward = [f] * stages, [ratio * f] * stages
    expected = one_f_one_b(stages, microbatches) * (1 + ratio) * f
    assert simulate(Flow(stages, microbatches), forward, backward) == pytest.approx(expected)


@given(st.floats(1, 4), st.integers(1, 12), st.integers(1, 40))
def test_other_ratios_stay_within_a_twelfth_of_1f1b(ratio, stages, microbatches):
    """A rank that does not wait for a gradient starts a forward that 1F1B would have put off."""
    found = simulate(Flow(stages, microbatches), [1.0] * stages, [ratio] * stages)
    bound = one_f_one_b(stages, microbatches) * (1 + ratio)
    assert bound * (1 - 1e-9) <= found <= bound * 13 / 12


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=6), st.integers(1, 16))
def test_no_pipeline_beats_its_busiest_stage(stages, microbatches):
    forward, backward = zip(*stages, strict=True)
    busiest = max(f + b for f, b in stages)
    assert simulate(Flow(len(stages), microbatches), forward, backward) >= microbatches * busiest * (1 - 1e-9)


def equal(flow, hop=0.0):
    """Every chunk takes its share of one forward of 1 s and one backward of 2 s, half of it for the weights."""
    one = [1 / flow.chunks] * (flow.ranks * flow.chunks)
    return simulate(flow, one, [2 * seconds for seconds in one], one, hop)


SHAPES = pytest.mark.parametrize(("ranks", "microbatches"), [(2, 8), (4, 16), (4, 32), (8, 32)])


@SHAPES
@pytest.mark.parametrize("chunks", [2, 3, 4])
def test_interleaving_cuts_the_bubble_by_the_chunks(ranks, microbatches, chunks):
    """Narayanan et al., SC'21, section 2.2: to (p - 1)/v of a microbatch."""
    found = equal(Flow(ranks, microbatches, chunks))
    assert found == pytest.approx(3 * microbatches + 3 * (ranks - 1) / chunks)
    assert found < equal(Flow(ranks, microbatches))


@SHAPES
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_deferring_weights_cuts_the_bubble_further(ranks, microbatches, chunks):
    """Qi et al., ICLR 2024, section 2.3: to a third of 1F1B's, with twice its activations."""
    whole = equal(Flow(ranks, microbatches, chunks))
    deferred = equal(Flow(ranks, microbatches, chunks, defer_weights=True))
    roomy = equal(Flow(ranks, microbatches, chunks, 2 * ranks, defer_weights=True))
    assert roomy <= deferred < whole
    assert roomy == pytest.approx(3 * microbatches + (ranks - 1) / chunks)


@SHAPES
def test_more_in_flight_hides_messages_that_take_time(ranks, microbatches):
    """With one microbatch a rank a round trip paces the pipeline; with two it does not."""
    few, many = (equal(Flow(ranks, microbatches, in_flight=k * ranks), hop=0.3) for k in (1, 2))
    bound = 3 * one_f_one_b(ranks, microbatches)
    assert many < few
    assert many <= 1.05 * bound + 2 * (ranks - 1) * 0.3


def static(ranks, microbatches, hop):
    """Seconds of 1F1B as a table: each rank does its list in order and waits for exactly what comes next."""
    end, free = {}, [0.0] * ranks
    plans = [table(rank, ranks, microbatches) for rank in range(ranks)]
    places = [0] * ranks
    arrived = defaultdict(float)
    while any(place < len(plan) for place, plan in zip(places, plans, strict=True)):
        for rank, plan in enumerate(plans):
            while places[rank] < len(plan):
                kind, microbatch = plan[places[rank]]
                needs = needed(kind, rank, ranks, microbatch)
                if needs and needs not in end:
                    break
                if needs and needs[1] != rank:
                    way = (needs[1], rank)
                    arrived[way] = max(arrived[way], end[needs] + hop())
                    start = max(free[rank], arrived[way])
                else:
                    start = free[rank]
                end[kind, rank, microbatch] = free[rank] = start + {"f": 1.0, "b": 2.0}[kind]
                places[rank] += 1
    return max(free)


def table(rank, ranks, microbatches):
    ahead = min(ranks - 1 - rank, microbatches)
    plan = [("f", microbatch) for microbatch in range(ahead)]
    for microbatch in range(microbatches):
        plan += [("f", microbatch + ahead)] * (microbatch + ahead < microbatches) + [("b", microbatch)]
    return plan


def needed(kind, rank, ranks, microbatch):
    if kind == "f":
        return ("f", rank - 1, microbatch) if rank else None
    return ("b", rank + 1, microbatch) if rank < ranks - 1 else ("f", rank, microbatch)


def test_the_table_is_1f1b_where_messages_are_free():
    assert static(4, 16, lambda: 0.0) == 3 * one_f_one_b(4, 16)


def draws(rng, choices):
    return lambda: rng.choice(choices)


@pytest.mark.parametrize("ranks", [4, 8])
def test_a_jittery_link_costs_a_static_schedule_more_than_the_machine(ranks):
    """Nine seeds: one message in four is late by a whole microbatch."""
    microbatches, choices = 6 * ranks, [0.0, 0.0, 0.0, 3.0]
    ours, theirs = [], []
    for seed in range(9):
        ours.append(
            equal(Flow(ranks, microbatches, in_flight=2 * ranks), draws(random.Random(seed), choices))
        )
        theirs.append(static(ranks, microbatches, draws(random.Random(seed), choices)))
    assert sorted(ours)[4] < 0.8 * sorted(theirs)[4]


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.booleans(), st.floats(0, 1))
def test_no_flow_beats_its_work(ranks, chunks, microbatches, defer, hop):
    flow = Flow(ranks, microbatches, chunks if ranks > 1 else 1, None, defer)
    assert equal(flow, hop) >= 3 * microbatches * (1 - 1e-9)


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
@pytest.mark.parametrize("hop", [0.1, 0.2, 0.3, 0.5])
def test_the_default_in_flight_keeps_up_with_a_table_whose_messages_take_time(ranks, hop):
    """With p in flight, 1F1B's own memory, the machine would take up to 13 % longer than the table."""
    flow = Flow(ranks, 4 * ranks)
    assert equal(flow, hop) <= 1.02 * static(ranks, 4 * ranks, lambda: hop)


FLOWS = st.builds(
    lambda ranks, microbatches, chunks, defer: Flow(
        ranks, microbatches, chunks if ranks > 1 else 1, None, defer
    ),
    st.integers(1, 5), st.integers(1, 9), st.integers(1, 3), st.booleans(),
)  # fmt: skip


@given(FLOWS, st.data(), st.floats(0, 1))
def test_a_timeline_holds_all_work_once_and_no_rank_does_two_things_at_once(flow, data, hop):
    stages = flow.ranks * flow.chunks
    forward, backward = (
        data.draw(st.lists(SECONDS, min_size=stages, max_size=stages), name) for name in ("f", "b")
    )
    weight = [seconds / 2 for seconds in backward]
    spans = timeline(flow, forward, backward, weight, hop)
    assert max(span.end for span in spans) == simulate(flow, forward, backward, weight, hop)
    places = [(span.rank, span.operation, span.chunk, span.microbatch) for span in spans]
    kinds = 3 if flow.defer_weights else 2
    assert len(places) == len(set(places)) == kinds * stages * flow.microbatches
    for rank in range(flow.ranks):
        mine = [span for span in spans if span.rank == rank]
        assert all(before.end <= after.start for before, after in pairwise(mine))
        work = sum(forward[rank :: flow.ranks]) + sum(backward[rank :: flow.ranks])
        assert sum(span.end - span.start for span in mine) == pytest.approx(work * flow.microbatches)


@given(FLOWS, st.floats(0, 1))
def test_in_a_timeline_everything_comes_after_the_message_that_it_waits_for(flow, hop):
    stages = flow.ranks * flow.chunks
    ends = {}
    for span in timeline(flow, [1.0] * stages, [2.0] * stages, [1.0] * stages, hop):
        virtual = span.chunk * flow.ranks + span.rank
        if span.operation is Operation.FORWARD and virtual:
            assert span.start * (1 + 1e-9) >= ends[Operation.FORWARD, virtual - 1, span.microbatch] + hop
        if span.operation is Operation.BACKWARD and virtual < stages - 1:
            assert span.start * (1 + 1e-9) >= ends[Operation.BACKWARD, virtual + 1, span.microbatch] + hop
        if span.operation is Operation.WEIGHT:
            assert span.start >= ends[Operation.BACKWARD, virtual, span.microbatch]
        ends[span.operation, virtual, span.microbatch] = span.end


def test_two_ranks_and_two_microbatches_by_hand():
    spans = timeline(Flow(2, 2), [1.0, 1.0], [2.0, 2.0], hop=0.5)
    forth, back = Operation.FORWARD, Operation.BACKWARD
    assert set(spans) == {
        (0, forth, 0, 0, 0.0, 1.0), (0, forth, 0, 1, 1.0, 2.0), (0, back, 0, 0, 5.0, 7.0), (0, back, 0, 1, 8.0, 10.0),
        (1, forth, 0, 0, 1.5, 2.5), (1, back, 0, 0, 2.5, 4.5), (1, forth, 0, 1, 4.5, 5.5), (1, back, 0, 1, 5.5, 7.5),
    }  # fmt: skip


def test_one_late_microbatch_delays_what_waits_for_it():
    flow = Flow(2, 3)
    seconds = {
        operation: [[each] * 3 for _ in range(2)]
        for operation, each in ((Operation.FORWARD, 1.0), (Operation.BACKWARD, 2.0))
    }
    before = max(span.end for span in drive(flow, seconds))
    seconds[Operation.FORWARD][1][0] += 5.0
    assert max(span.end for span in drive(flow, seconds)) == before + 5.0
