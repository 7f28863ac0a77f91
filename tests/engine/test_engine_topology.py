"""Every rank computes its place alone, so all ranks must come to the same picture."""

from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.topology import Topology
from hpcdl.spec.decomposition import AXES, Decomposition

DEGREES = st.integers(1, 3)
DECOMPOSITIONS = st.builds(Decomposition, data=DEGREES, pipeline=DEGREES, x=DEGREES, y=DEGREES, z=DEGREES)


def everyone(decomposition):
    return [Topology(decomposition, rank) for rank in range(decomposition.ranks)]


@given(DECOMPOSITIONS, st.sets(st.sampled_from(AXES)), st.data())
def test_group_is_the_same_for_all_its_members(decomposition, axes, data):
    """Whoever is in my group has the same group, so collectives meet."""
    rank = data.draw(st.integers(0, decomposition.ranks - 1))
    group = Topology(decomposition, rank).group(*axes)
    assert rank in group
    for other in {group[0], group[len(group) // 2], group[-1]}:
        assert Topology(decomposition, other).group(*axes) == group


@given(DECOMPOSITIONS)
def test_neighbours_point_at_each_other_around_a_ring(decomposition):
    here = everyone(decomposition)
    for topology in here:
        after = here[topology.next]
        assert after.previous == topology.rank
        assert after.stage == (0 if topology.is_last else topology.stage + 1)
        assert after.batch_shard == topology.batch_shard


@given(DECOMPOSITIONS)
def test_batch_shards_are_read_once_by_each_row_of_x_and_y(decomposition):
    """Each part of the batch is read by exactly x·y ranks of the first stage."""
    shards = [topology.batch_shard for topology in everyone(decomposition) if topology.is_first]
    expected = sorted(list(range(decomposition.batch_shards)) * decomposition.x * decomposition.y)
    assert sorted(shards) == expected


@given(DECOMPOSITIONS)
def test_loss_is_reported_once_a_shard(decomposition):
    speakers = [topology.batch_shard for topology in everyone(decomposition) if topology.reports_loss]
    assert sorted(speakers) == list(range(decomposition.batch_shards))


@given(DECOMPOSITIONS)
def test_ends_are_the_first_and_last_stage_of_one_pipeline(decomposition):
    here = everyone(decomposition)
    for topology in here:
        ends = [here[rank] for rank in topology.ends]
        assert ends[0].is_first
        assert ends[-1].is_last
        assert {end.batch_shard for end in ends} == {topology.batch_shard}
        assert len(ends) == (1 if decomposition.pipeline == 1 else 2)
