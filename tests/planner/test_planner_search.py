from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpcdl.planner import memory
from hpcdl.planner.choices import Space
from hpcdl.planner.divisors import divisors
from hpcdl.planner.engines import ENGINES
from hpcdl.planner.estimate import least_over_schedules, least_step, step_seconds
from hpcdl.planner.offload import offload_levels
from hpcdl.planner.search import Search
from hpcdl.planner.space import Candidates
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training


def everything(case, *, activations):
    """Every node with every schedule, spacing of checkpoints and level of offload, whatever it is good for."""
    space = Space(case.layout.ranks, case.model, case.training.global_batch, case.engine)
    schedules = space.schedules(space.nodes)
    if activations:
        schedules = schedules.take(schedules.full_recompute)
    full = schedules.take(schedules.full_recompute)
    apart = [full.having(recompute_every=count) for count in divisors(case.model.layers)[1:]]
    all_of_them = Candidates.joined([schedules, *apart])
    levels = offload_levels(case)
    return Candidates.joined([all_of_them.offloading(level, activations=activations) for level in levels])


def best_of_all(case):
    """Seconds of the best, by driving every pipeline; None where nothing fits."""
    for activations in (False, True):
        candidates = everything(case, activations=activations)
        fitting = candidates.take(memory.fits(case, candidates))
        if len(fitting):
            return float(step_seconds(case, fitting).min())
    return None


def searched(case, shown=3):
    found = Search.through(case, shown)
    if not found.fitting:
        found = Search.through(case, shown, activations=True)
    return found


MODELS = st.builds(
    lambda layers, width, kv, sequence, vocab: Model(
        family="llama", layers=layers, hidden=512 * width, heads=4, kv_heads=kv, vocab=vocab, sequence=sequence,
    ),
    st.integers(2, 6), st.integers(1, 4), st.sampled_from([2, 4]), st.sampled_from([256, 2048]),
    st.sampled_from([512, 32768]),
)  # fmt: skip


@settings(max_examples=25)
@given(
    model=MODELS,
    nodes=st.integers(1, 3),
    batch=st.sampled_from([4, 6, 12]),
    size=st.sampled_from([1.5, 2, 3, 5, 40]),
    where=st.sampled_from(["auto", "device", "host"]),
)
def test_the_best_found_is_the_best_of_all(case_on, small_memory, model, nodes, batch, size, where):
    training = Training(global_batch=batch, offload_step=where)
    case = case_on(nodes, 2, model, training, small_memory(f"{size}GiB"))
    expected, found = best_of_all(case), searched(case)
    assert (expected is None) == (found.fitting == 0)
    if expected is not None:
        assert found.leaders.driven[0]
        assert found.leaders.seconds[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["any", "megatron-core"])
@pytest.mark.parametrize("experts", [1, 4])
def test_the_best_for_an_engine_that_runs_everything(case_on, small_memory, name, experts):
    model = Model(layers=4, hidden=1024, heads=4, vocab=2048, sequence=512, experts=experts)
    case = case_on(2, 2, model, Training(global_batch=8), small_memory("3GiB"))
    case = replace(case, engine=ENGINES[name])
    space = Space(4, model, 8, case.engine)
    assert set(np.unique(space.nodes.zero)) == {0, 1, 2, 3}
    assert space.nodes.sequence_parallel.any()
    assert (space.nodes.context > 1).any()
    assert (space.nodes.expert > 1).any() == (experts > 1)
    assert searched(case).leaders.seconds[0] == pytest.approx(best_of_all(case), rel=1e-9)


@settings(max_examples=25)
@given(model=MODELS, nodes=st.integers(1, 4), batch=st.sampled_from([4, 8, 12]))
def test_no_schedule_beats_its_node_and_no_step_its_least_time(case_on, model, nodes, batch):
    case = case_on(nodes, 2, model, Training(global_batch=batch))
    space = Space(2 * nodes, model, batch)
    floors = least_over_schedules(case, space.nodes)
    for place in range(0, len(space.nodes), 7):
        schedules = space.schedules(space.nodes.take(np.array([place])))
        least = least_step(case, schedules)
        assert (least >= floors[place] * (1 - 1e-9)).all()
        assert (step_seconds(case, schedules) >= least * (1 - 1e-9)).all()


LOGITS = Model(family="llama", layers=3, hidden=512, heads=4, kv_heads=2, vocab=32768, sequence=2048)


# Fullest at the loss, where the only checkpoint of three layers is less than the two that offload leaves.
@example(model=LOGITS, nodes=1, size=4)
@settings(max_examples=25)
@given(model=MODELS, nodes=st.integers(1, 4), size=st.sampled_from([1.5, 2, 4]))
def test_what_may_not_fit_fits_in_no_schedule(case_on, small_memory, model, nodes, size):
    case = case_on(nodes, 2, model, Training(global_batch=12), small_memory(f"{size}GiB"))
    space = Space(2 * nodes, model, 12)
    hopeless = space.nodes.take(~memory.may_fit(case, space.nodes))
    schedules = space.schedules(hopeless)
    for apart in divisors(model.layers):
        spaced = schedules.having(recompute_every=np.where(schedules.full_recompute, apart, 1))
        assert not memory.fits(case, spaced).any()


def test_schedules_are_counted_without_making_them():
    space = Space(8, Model(layers=12, hidden=192, heads=6, vocab=256, sequence=128), 24)
    assert int(space.schedule_counts(space.nodes).sum()) == len(space.schedules(space.nodes))


def test_rivals_along_what_a_node_fixes_are_the_fastest_there_are(case_on, small_memory):
    """By their least time, of all that fit."""
    model = Model(layers=4, hidden=1024, heads=4, vocab=2048, sequence=512)
    case = case_on(2, 2, model, Training(global_batch=8), small_memory("6GiB"))
    leaders = searched(case, shown=1).leaders
    candidates = everything(case, activations=False)
    fitting = candidates.take(memory.fits(case, candidates))
    least = least_step(case, fitting)
    for column in ("x", "y", "z", "data", "pipeline", "microbatch", "recomputed", "zero"):
        best = getattr(leaders.candidates, column)[0]
        others = getattr(fitting, column) != best
        kept = getattr(leaders.candidates, column) != best
        assert least_step(case, leaders.candidates.take(kept)).min() == pytest.approx(least[others].min())


def case_that_is_stopped(case, monkeypatch):
    def stop(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("hpcdl.planner.search.least_step", stop)
    return case


def test_a_search_tells_how_far_it_is_and_stops_when_asked(case_on, monkeypatch):
    monkeypatch.setattr("hpcdl.planner.choices._BLOCK", 64)
    case = case_on(4, 4, training=Training(global_batch=48))
    told = []
    whole = Search.through(case, 5, watch=lambda done, total: told.append((done, total)))
    assert len(told) > 3
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1] == whole.done

    def impatient(done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Search.through(case_that_is_stopped(case, monkeypatch), 5)
    monkeypatch.undo()
    monkeypatch.setattr("hpcdl.planner.choices._BLOCK", 64)
    part = Search.through(case, 5, watch=impatient)
    assert part.interrupted
    assert part.done == 2
    assert part.fitting
    assert part.leaders.driven[0]
    assert part.leaders.seconds[0] >= whole.leaders.seconds[0]


def test_blocks_of_any_size_find_the_same(case_on, monkeypatch):
    case = case_on(4, 4, training=Training(global_batch=48))
    at_once = Search.through(case, 5).leaders
    monkeypatch.setattr("hpcdl.planner.choices._BLOCK", 100)
    monkeypatch.setattr("hpcdl.planner.search._PIECE", 16)
    in_parts = Search.through(case, 5).leaders
    assert in_parts.seconds[:5] == pytest.approx(at_once.seconds[:5])
    assert in_parts.candidates.decomposition(0) == at_once.candidates.decomposition(0)
