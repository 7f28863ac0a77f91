import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdl.planner.bound import Bound, Costs, Split
from hpcdl.planner.engines import HPCDL
from hpcdl.planner.pipeline import simulate
from hpcdl.planner.space import Candidates
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model
from hpcdl.spec.partition import stage_layers
from hpcdl.stage import Flow

PARTS = st.tuples(*[st.floats(0, 3)] * 2, st.floats(0.2, 3))  # of begin, end and a layer


def model_of(layers, vocab=1000):
    return Model(layers=layers, hidden=256, heads=4, vocab=vocab, sequence=128)


def candidates(flow):
    return Candidates.of(
        Decomposition(pipeline=flow.ranks, interleave=flow.chunks, defer_weights=flow.defer_weights)
    )


def bound(flow, model, forward, backward, weight, hop):
    """Of one pipeline; costs are those of (begin, end, layer)."""
    costs = [
        Costs(*(np.array([part]) for part in (one[0], one[2], one[1]))) for one in (forward, backward, weight)
    ]
    ints = [np.array([int(value)]) for value in (flow.microbatches, flow.limit, flow.defer_weights)]
    return Bound(Split.of(model, HPCDL, candidates(flow)), *ints, *costs, np.array([hop]))


def driven(flow, model, forward, backward, weight, hop):
    """The same by the state machine."""
    stages = flow.ranks * flow.chunks

    def spread(costs):
        seconds = [costs[2] * len(stage_layers(model, stages, stage)) for stage in range(stages)]
        seconds[0] += costs[0]
        seconds[-1] += costs[1]
        return seconds

    return simulate(flow, spread(forward), spread(backward), spread(weight), hop)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.sampled_from([300, 30_000]))
def test_a_split_is_that_of_the_partition(layers, ranks, chunks, vocab):
    if ranks * chunks > layers or (ranks == 1 and chunks > 1):
        return
    model = model_of(layers, vocab)
    split = Split.of(model, HPCDL, candidates(Flow(ranks, 1, chunks)))
    held = [
        [len(stage_layers(model, ranks * chunks, chunk * ranks + rank)) for chunk in range(chunks)]
        for rank in range(ranks)
    ]
    first, fullest, last = split.pacing
    for one in split.pacing:
        rank = int(one.place[0])
        assert one.layers[0] == sum(held[rank])
        assert one.before[0] == sum(part[0] for part in held[:rank])
    assert (first.place[0], last.place[0]) == (0, ranks - 1)
    assert fullest.layers[0] == max(map(sum, held[: ranks - 1] or held))


@settings(max_examples=150)
@given(
    st.integers(1, 8), st.integers(1, 4), st.integers(1, 30), st.booleans(), st.integers(0, 20), PARTS,
    st.floats(1, 4), st.floats(0, 1), st.floats(0, 2),
)  # fmt: skip
def test_no_pipeline_beats_its_bounds(ranks, chunks, microbatches, defer, more, forward, ratio, share, hop):
    flow = Flow(ranks, microbatches, chunks if ranks > 1 else 1, None, defer)
    model = model_of(ranks * chunks + more)
    backward = tuple(ratio * part for part in forward)
    weight = tuple(share * part for part in backward)
    found = bound(flow, model, forward, backward, weight, hop)
    exact = driven(flow, model, forward, backward, weight, hop)
    assert found.over_schedules[0] <= found.seconds[0] * (1 + 1e-9)
    assert found.seconds[0] <= exact * (1 + 1e-9)


@given(st.integers(1, 12), st.integers(1, 30), st.floats(0.1, 3), st.sampled_from([1.0, 2.0, 3.0]))
def test_the_bound_is_1f1b_where_stages_are_equal(ranks, microbatches, layer, ratio):
    flow, nothing = Flow(ranks, microbatches), (0.0, 0.0, 0.0)
    forward, backward = (0.0, 0.0, layer), (0.0, 0.0, ratio * layer)
    found = bound(flow, model_of(2 * ranks), forward, backward, nothing, 0.0).seconds[0]
    assert found == pytest.approx((microbatches - 1 + ranks) * 2 * layer * (1 + ratio))


SHAPES = pytest.mark.parametrize(("ranks", "microbatches"), [(2, 8), (4, 16), (8, 32), (16, 64)])


@SHAPES
@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("defer", [False, True])
def test_the_bound_is_within_a_twentieth_where_a_busy_last_stage_paces(ranks, microbatches, chunks, defer):
    """As with a large vocabulary; messages take a hundredth of a rank's forward."""
    flow = Flow(ranks, microbatches, chunks, None, defer)
    layer = 1 / chunks
    costs = (0.0, 0.1, layer), (0.0, 0.2, 2 * layer), (0.0, 0.1, layer)
    model = model_of(ranks * chunks)
    exact = driven(flow, model, *costs, hop=0.01)
    assert bound(flow, model, *costs, 0.01).seconds[0] >= 0.95 * exact


@given(PARTS, st.floats(1, 4), st.integers(1, 8), st.integers(1, 4), st.floats(0, 1))
def test_the_bound_is_exact_for_one_microbatch(forward, ratio, ranks, chunks, hop):
    flow = Flow(ranks, 1, chunks if ranks > 1 else 1)
    costs = forward, tuple(ratio * part for part in forward), (0.0, 0.0, 0.0)
    model = model_of(ranks * chunks + 3)
    assert bound(flow, model, *costs, hop).seconds[0] == pytest.approx(driven(flow, model, *costs, hop))


@given(PARTS, st.floats(1, 4), st.integers(1, 40))
def test_the_bound_is_exact_for_one_stage(forward, ratio, microbatches):
    flow = Flow(1, microbatches)
    costs = forward, tuple(ratio * part for part in forward), (0.0, 0.0, 0.0)
    model = model_of(5)
    assert bound(flow, model, *costs, 0.0).seconds[0] == pytest.approx(driven(flow, model, *costs, 0.0))


def test_crowded_ranks_take_turns_and_bubbles_are_free():
    """Two stages on one core: the time is all the work, whatever the number of microbatches."""
    for microbatches in (1, 4):
        costs = (0.0, 0.0, 1.0), (0.0, 0.0, 2.0), (0.0, 0.0, 0.0)
        one = bound(Flow(2, microbatches), model_of(2), *costs, 0.0)
        assert one.crowded_seconds(2.0)[0] == pytest.approx(6.0 * microbatches)
