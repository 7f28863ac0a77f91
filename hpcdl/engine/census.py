"""The whole world's topology at once: does every rank's picture fit every other's, and what does it cost?

Each rank of a run computes its place alone and never asks. This goes over all ranks in one process, for
worlds of any size: ``python -m hpcdl.engine.census data=8 pipeline=16 x=8 y=4 z=4``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hpcdl.engine.topology import LANES, Topology, memberships
from hpcdl.errors import EngineError
from hpcdl.spec.decomposition import Decomposition

Place = Callable[[Decomposition, int], Topology]
Groups = dict[str, tuple[int, ...]]  # of one rank, by name
Communicator = tuple[int, str | None, int]  # the identity of its ranks, its lane and the first of its ranks


@dataclass(frozen=True)
class Census:
    """How many groups of more than one rank a decomposition makes."""

    by_name: dict[str, int]
    distinct: int  # in the world; names that mean the same ranks in the same lane share one
    most_on_a_rank: int


def census(decomposition: Decomposition, *, tied: bool, place: Place = Topology) -> Census:
    """Check every rank against every other, and count.

    Args:
        decomposition: what to check.
        tied: whether the LM head shares the embedding.
        place: makes the topology of a rank.

    Raises:
        EngineError: the first thing that two ranks see differently.
    """
    world = [place(decomposition, rank) for rank in range(decomposition.ranks)]
    _check_pipeline(world)
    _check_batch(world)
    own = [memberships(topology, tied=tied) for topology in world]
    by_name = {name: _groups(name, [groups[name] for groups in own]) for name in own[0]}
    # All members of a group now hold one tuple, whose hash need not be asked again for each of them.
    same = {ranks: ranks for groups in by_name.values() for ranks in groups}
    held = {(name, ranks[0]): same[ranks] for name, groups in by_name.items() for ranks in groups}
    own = [{name: held.get((name, ranks[0]), ranks) for name, ranks in groups.items()} for groups in own]
    made = [list(dict.fromkeys(_of_several(groups))) for groups in own]
    _check_order(made)
    return Census(
        {name: len(groups) for name, groups in by_name.items()},
        len({(ranks, LANES.get(name)) for name, groups in by_name.items() for ranks in groups}),
        max(map(len, made)),
    )


def _check_order(made: list[list[Communicator]]) -> None:
    """Members of a group have made equally many before, by which torch names it: else they wait for ever."""
    places = [{each: place for place, each in enumerate(own)} for own in made]
    for rank, own in enumerate(places):
        for each, place in own.items():
            first = each[-1]
            theirs = places[first].get(each)
            if theirs != place:
                raise _differs(f"rank {rank} makes a group as number {place}, rank {first} as {theirs}")


def _of_several(groups: Groups) -> Iterator[Communicator]:
    several = ((name, ranks) for name, ranks in groups.items() if len(ranks) > 1)
    return ((id(ranks), LANES.get(name), ranks[0]) for name, ranks in several)


def _groups(name: str, picture: list[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """The distinct groups of one name; every rank is in one, and all members of it see the same."""
    distinct = {ranks[0]: ranks for ranks in picture}
    for ranks in distinct.values():
        for member in ranks:
            if picture[member] is not ranks and picture[member] != ranks:
                raise _differs(f"rank {ranks[0]} has {name} group {ranks}, rank {member} {picture[member]}")
    if sum(map(len, distinct.values())) != len(picture):
        raise _differs(f"the {name} groups do not hold every rank once")
    return {ranks for ranks in distinct.values() if len(ranks) > 1}


def _check_pipeline(world: list[Topology]) -> None:
    for here in world:
        for there, back in ((here.next, "previous"), (here.previous, "next")):
            if getattr(world[there], back) != here.rank:
                raise _differs(f"rank {here.rank} speaks to {there}, whose {back} rank is another")


def _check_batch(world: list[Topology]) -> None:
    """Every stage reads every shard once a position on x and y; each shard's loss is reported once."""
    d = world[0].decomposition
    read = Counter((topology.stage, topology.batch_shard) for topology in world)
    expected = {(stage, shard): d.x * d.y for stage in range(d.pipeline) for shard in range(d.batch_shards)}
    if read != expected:
        raise _differs(f"the shards of the batch are read {dict(read)} times")
    reported = Counter(topology.batch_shard for topology in world if topology.reports_loss)
    if reported != Counter(range(d.batch_shards)):
        raise _differs(f"the losses of the shards are reported {dict(reported)} times")


def _differs(what: str) -> EngineError:
    return EngineError(what, "a defect of hpcdl/engine/topology.py; please report the decomposition")


def main() -> None:
    """Check the decomposition on the command line, as ``axis=degree`` words."""
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    decomposition = Decomposition.model_validate(words)
    found = census(decomposition, tied=True)
    print(f"{decomposition}: {decomposition.ranks} ranks, {found.distinct} groups, ", end="")  # noqa: T201
    print(f"at most {found.most_on_a_rank} on a rank: {found.by_name}")  # noqa: T201


if __name__ == "__main__":
    main()
