import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.planner.space import Candidates
from hpcdl.spec.decomposition import (
    AXES,
    ENGINE_RULES,
    RULES,
    Coordinate,
    Decomposition,
    violations,
)
from hpcdl.spec.model import Model

OFFLOADS = ("none", "optimizer", "parameters")
degrees = st.builds(Decomposition, **{axis: st.integers(1, 3) for axis in AXES})
MODEL = Model(family="llama", layers=6, hidden=96, heads=12, kv_heads=4, ffn=160, vocab=300, sequence=16)


@given(degrees)
def test_rank_and_coordinate_are_inverse(d):
    coordinates = [d.coordinate(rank) for rank in range(d.ranks)]
    assert [d.rank(coordinate) for coordinate in coordinates] == list(range(d.ranks))
    assert len(set(coordinates)) == d.ranks


@given(degrees, st.sets(st.sampled_from(AXES)))
def test_groups_along_any_axes_partition_the_ranks(d, axes):
    groups = {d.group(rank, *axes) for rank in range(d.ranks)}
    assert sorted(rank for group in groups for rank in group) == list(range(d.ranks))
    assert all(rank in d.group(rank, *axes) for rank in range(d.ranks))
    assert {len(group) for group in groups} == {int(np.prod([getattr(d, axis) for axis in axes]))}


def test_x_varies_fastest_and_pipeline_slowest():
    d = Decomposition(data=2, pipeline=2, x=2, y=2, z=2)
    assert d.coordinate(1) == Coordinate(x=1, y=0, z=0, data=0, pipeline=0)
    assert d.group(0, "pipeline") == (0, 16)


@pytest.mark.parametrize("rank", [-1, 8])
def test_a_rank_outside_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank {rank} does not exist among 8"):
        Decomposition(data=8).coordinate(rank)


@given(
    st.lists(
        st.builds(
            Decomposition,
            **{axis: st.integers(1, 6) for axis in (*AXES, "context", "expert", "microbatch")},
            recompute=st.sampled_from(["none", "full"]),
            sequence_parallel=st.booleans(),
            zero=st.integers(0, 3),
            order=st.sampled_from(["data-pipeline", "pipeline-data"]),
            offload=st.sampled_from(OFFLOADS),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 100),
)
def test_rules_judge_many_as_they_judge_one(many, batch):
    candidates = Candidates.of(*many)
    assert candidates.offload.tolist() == [d.offload for d in many]
    for rule in (*RULES, *ENGINE_RULES):
        together = np.broadcast_to(rule.holds(candidates, MODEL, batch), (len(many),))
        assert together.tolist() == [bool(rule.holds(d, MODEL, batch)) for d in many]


def test_a_violation_names_its_values():
    broken = list(violations(Decomposition(data=3, x=3, pipeline=7, interleave=2), MODEL, 32).values())
    assert "global_batch 32 is not divisible by data 3 × z 1" in broken
    assert "kv_heads 4 is not divisible by x 3" in broken
    assert "pipeline 7 × interleave 2 needs more layers than the model's 6" in broken


def test_more_layers_recomputed_as_one_than_there_are_is_refused_by_name():
    broken = violations(Decomposition(recompute="full", recompute_every=7), MODEL, 8)
    assert broken == {"recompute_every": "recompute_every 7 is more than the model's 6 layers"}


def test_a_decomposition_is_said_by_its_axes():
    assert str(Decomposition(data=2, pipeline=2)) == "data 2 × pipeline 2"
    assert str(Decomposition()) == "one rank"


@pytest.mark.parametrize(("batch", "microbatches"), [(96, 4), (72, 3), (78, 4), (24, 1)])
def test_microbatches_count_what_one_pipeline_runs(batch, microbatches):
    """The last one takes what is left: 78 sequences are 13 a shard, cut into 4, 4, 4 and 1."""
    assert Decomposition(data=2, z=3, microbatch=4).microbatches(batch) == microbatches


def test_a_microbatch_is_no_larger_than_a_share():
    assert "microbatch" not in violations(Decomposition(data=2, microbatch=4), MODEL, 8)
    found = violations(Decomposition(data=2, microbatch=5), MODEL, 8)
    assert found == {
        "microbatch": "microbatch 5 is more than a rank's share of global_batch 8 over data 2 × z 1"
    }


@pytest.mark.parametrize(
    ("d", "words"),
    [
        (Decomposition(context=2), "context 2: the bundled engine does not cut sequences"),
        (Decomposition(data=2, expert=2), "expert 2: the bundled engine has no expert parallelism"),
        (Decomposition(zero=3), "zero 3: the bundled engine shards optimizer state over data"),
        (Decomposition(x=2, sequence_parallel=True), "does not cut norms along the sequence"),
        (Decomposition(order="pipeline-data"), "order pipeline-data: the bundled engine numbers ranks"),
    ],
)
def test_what_only_other_engines_run_is_refused_and_can_be_asked_about(d, words):
    model = MODEL.model_copy(update={"experts": 2})
    found = violations(d, model, 32)
    assert any(words in sentence for sentence in found.values())
    assert "experts 2: the bundled engine has no mixture of experts" in found["dense model"]
    assert violations(d, model, 32, ()) == {}


def test_experts_are_spread_over_ranks_of_data_evenly():
    model = MODEL.model_copy(update={"experts": 8})
    broken = violations(Decomposition(data=4, expert=3), model, 32, ())
    assert broken == {"expert": "expert 3 must divide the model's experts 8 and data 4"}
