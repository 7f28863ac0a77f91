from dataclasses import replace

import pytest

from hpcdl.planner import memory
from hpcdl.planner.engines import find_engine
from hpcdl.planner.remedies import remedies
from hpcdl.planner.space import Candidates
from hpcdl.spec.decomposition import Decomposition, violations
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training

MODEL = Model(layers=16, hidden=2048, heads=16, vocab=32000, sequence=2048)
LARGE = Decomposition(data=8, microbatch=4)


@pytest.fixture
def tight(case_on, small_memory):
    """A case whose devices have so much memory."""

    def make(size, **node):
        training = Training(global_batch=64)
        return case_on(nodes=2, model=MODEL, training=training, node=small_memory(size, **node))

    return make


def with_change(d, change):
    return Decomposition.model_validate({**d.model_dump(), **change})


@pytest.mark.parametrize("engine", ["hpcdl", "any", "megatron"])
@pytest.mark.parametrize("d", [LARGE, Decomposition(data=4, pipeline=2, recompute="full")], ids=str)
def test_remedies_can_run_on_the_same_ranks_and_need_what_they_say(tight, engine, d):
    case = replace(tight("16GiB"), engine=find_engine(engine))
    found = remedies(case, d)
    assert found
    before = memory.need(case, Candidates.of(d))[0]
    for remedy in found:
        other = with_change(d, remedy.change)
        assert other.ranks == d.ranks
        assert not violations(other, MODEL, 64, case.engine.rules)
        assert memory.need(case, Candidates.of(other))[0] == remedy.need < before


@pytest.mark.parametrize(
    ("size", "d", "change"),
    [
        ("27GiB", LARGE, {"microbatch": 2}),
        ("24GiB", LARGE, {"microbatch": 1}),
        ("22GiB", LARGE, {"x": 4, "data": 2}),
        ("20GiB", Decomposition(data=8), {"zero": 1}),
        ("17GiB", Decomposition(data=8, zero=1, microbatch=2), {"microbatch": 1}),
        ("20GiB", Decomposition(), {"recompute": "full"}),
        ("12GiB", Decomposition(), {"offload": "optimizer"}),
    ],
    ids=str,
)
def test_the_smallest_change_comes_first(tight, size, d, change):
    """Which one suffices depends on how tight it is, and on what ``d`` has already."""
    assert next(remedy for remedy in remedies(tight(size), d) if remedy.suffices).change == change


def test_changes_are_ordered_from_batch_to_host(tight):
    kinds = [next(iter(remedy.change)) for remedy in remedies(tight("16GiB"), LARGE)]
    order = ["microbatch", "zero", "recompute", "pipeline", "z", "x", "offload"]
    firsts = list(dict.fromkeys(kinds))
    assert firsts == [kind for kind in order if kind in firsts]
    assert {"microbatch", "zero", "recompute", "pipeline", "offload"} <= set(firsts)


def test_what_another_engine_shards_is_not_proposed_to_hpcdls(tight):
    stages = {
        name: [
            remedy.change["zero"]
            for remedy in remedies(_by(tight("16GiB"), name), LARGE)
            if "zero" in remedy.change
        ]
        for name in ("hpcdl", "torchtitan")
    }
    assert stages["hpcdl"] == [1]
    assert stages["torchtitan"][-1] == 3


def _by(case, name):
    return replace(case, engine=find_engine(name))


def test_nothing_is_proposed_to_the_host_where_it_is_the_same_memory(tight):
    case = tight("16GiB")
    shared = replace(case, node=case.node.model_copy(update={"unified_memory": True}))
    assert not any("offload" in remedy.change for remedy in remedies(shared, LARGE))
