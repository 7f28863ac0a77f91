"""The topology of whole worlds, checked in one process."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.census import census
from hpcdl.engine.topology import Topology
from hpcdl.errors import EngineError
from hpcdl.spec.decomposition import Decomposition

DEGREES = st.integers(1, 3)
DECOMPOSITIONS = st.builds(
    Decomposition,
    data=DEGREES,
    pipeline=DEGREES,
    x=DEGREES,
    y=DEGREES,
    z=DEGREES,
    defer_weights=st.booleans(),
)


@given(DECOMPOSITIONS, st.booleans())
def test_every_small_world_fits_together(decomposition, tied):
    found = census(decomposition, tied=tied)
    d = decomposition
    assert found.by_name["x"] == (d.ranks // d.x if d.x > 1 else 0)
    assert found.by_name["batch"] == (d.ranks // d.batch_shards if d.batch_shards > 1 else 0)
    assert found.by_name["ends"] == (d.ranks // d.pipeline if tied and d.pipeline > 1 else 0)
    choosing = (d.pipeline if d.defer_weights else d.pipeline - 1) if d.pipeline > 1 else 0
    assert found.by_name["team"] == (choosing * d.data if d.x * d.y * d.z > 1 else 0)
    assert found.distinct <= sum(found.by_name.values())


@pytest.mark.parametrize(
    ("degrees", "groups"),
    [
        # x 2048, y 4096, z 4096 and again for weights, data 2048, batch 512, 15 stages × 8 teams, ends 1024, world
        (
            {"data": 8, "pipeline": 16, "x": 8, "y": 4, "z": 4},
            2048 + 4096 + 2 * 4096 + 2048 + 512 + 120 + 1024 + 1,
        ),
        ({"data": 3, "pipeline": 5, "x": 7, "y": 2}, 30 + 105 + 70 + 12 + 42 + 1),
        ({"data": 11, "x": 13}, 11 + 13 + 1),
        ({"data": 6}, 1),  # along data, along batch and the world are the same ranks
        ({}, 0),
    ],
)
def test_groups_of_a_world_are_counted_in_seconds(degrees, groups):
    start = time.process_time()
    found = census(Decomposition(**degrees), tied=True)
    assert time.process_time() - start < 5
    assert found.distinct == groups
    assert found.most_on_a_rank <= 9


def test_members_of_a_group_have_made_equally_many_before():
    """Runs of pipeline 2 × x 2 × y 2 with a tied head once hung when they began.

    The first stage made its team before the group of the pipeline's ends, the last stage had no team to make,
    and torch names a group by how many its members have made.
    """
    census(Decomposition(pipeline=2, x=2, y=2), tied=True)

    class Impatient(Topology):
        """The first stage makes its team, as large as x · y, under another name and earlier."""

        def group(self, *axes):
            return super().group("x", "y") if axes == ("data",) and self.is_first else super().group(*axes)

    with pytest.raises(EngineError, match="as number"):
        census(Decomposition(pipeline=2, x=2, y=2), tied=True, place=Impatient)


class Odd(Topology):
    """Rank 3 believes to be on its own along x."""

    def group(self, *axes):
        return (3,) if axes == ("x",) and self.rank == 3 else super().group(*axes)


class Rotated(Topology):
    """Every rank lays its x group out beginning with itself."""

    def group(self, *axes):
        ranks = super().group(*axes)
        if axes != ("x",):
            return ranks
        here = ranks.index(self.rank)
        return ranks[here:] + ranks[:here]


class Deaf(Topology):
    """Nobody hears the last stage."""

    @property
    def previous(self):
        return None


class Silent(Topology):
    """Nobody speaks for the last shard."""

    @property
    def reports_loss(self):
        return super().reports_loss and self.batch_shard == 0


class Greedy(Topology):
    """Every rank reads the first shard."""

    @property
    def batch_shard(self):
        return 0


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        (Odd, r"x group \(2, 3\), rank 3 \(3,\)"),
        (Rotated, "x group"),
        (Deaf, "speaks to"),
        (Silent, "losses of the shards"),
        (Greedy, "shards of the batch are read"),
    ],
)
def test_a_rank_that_sees_it_differently_is_found(place, complaint):
    with pytest.raises(EngineError, match=complaint):
        census(Decomposition(data=2, pipeline=2, x=2), tied=True, place=place)
