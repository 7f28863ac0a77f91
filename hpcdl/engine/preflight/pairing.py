"""Who exchanges with whom, so that a slow node and not its neighbour is found. Pure.

A slow link shows in every all-reduce over it. So ranks of different nodes exchange in pairs: each rank with
one on the node before its own and one on the node after, counted around. Who was fast with anybody is fast.
Who was slow with both may itself be right and sit between two slow ones: such ranks exchange once more, each
with one that was fast.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from hpcdl.placement import Seat

Pair = tuple[int, int]


@dataclass(frozen=True)
class Way:
    """What one rank measures.

    Args:
        together: the ranks of its node; none where there is no other node to compare it with.
        partners: with whom it exchanges, round by round, all ranks in equally many; None: with nobody.
    """

    together: tuple[int, ...] = ()
    partners: tuple[int | None, ...] = ()


def first_ways(seats: Iterable[Seat]) -> list[Way]:
    """For each rank in order: its node, and both of its neighbours."""
    nodes = _nodes(seats)
    made = [rounds(rail) for rail in _rails(nodes)]
    return _ways(nodes, [[*chain(*each)] for each in zip(*made, strict=True)])


def second_ways(seats: Iterable[Seat], suspects: Collection[int]) -> list[Way]:
    """For each rank in order: its node, and for those whose links are suspect a rank that was fast."""
    nodes = _nodes(seats)
    pairs = [pair for rail in _rails(nodes) for pair in again(rail, suspects)]
    return _ways(nodes, [pairs] if pairs else [])


def rounds(rail: Sequence[int]) -> list[list[Pair]]:
    """Every rank with both of its neighbours, in rounds in which no rank is twice."""
    last = len(rail) - 1
    even = [(rail[at], rail[at + 1]) for at in range(0, last, 2)]
    odd = [(rail[at], rail[at + 1]) for at in range(1, last, 2)]
    around = [(rail[last], rail[0])] if last > 1 else []
    made = [even, odd + around] if last % 2 else [even, odd, around]
    return [pairs for pairs in made if pairs]


def again(rail: Sequence[int], suspects: Collection[int]) -> list[Pair]:
    """Each suspect with a rank that is none, as far as there are some."""
    right = [rank for rank in rail if rank not in suspects]
    return list(zip((rank for rank in rail if rank in suspects), right, strict=False))


def _nodes(seats: Iterable[Seat]) -> list[tuple[int, ...]]:
    """The ranks of each node."""
    found: dict[str, list[int]] = defaultdict(list)
    for seat in sorted(seats, key=lambda seat: seat.rank):
        found[seat.host].append(seat.rank)
    return [tuple(ranks) for ranks in found.values()]


def _rails(nodes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The first rank of every node, the second of every node, and so on; none if they have unequally many."""
    if len(nodes) < 2 or len({len(ranks) for ranks in nodes}) > 1:
        return []
    return list(zip(*nodes, strict=True))


def _ways(nodes: Sequence[tuple[int, ...]], pairs_of_rounds: Sequence[Sequence[Pair]]) -> list[Way]:
    together = {rank: ranks for ranks in nodes for rank in ranks}
    partners = [dict((*pairs, *((there, here) for here, there in pairs))) for pairs in pairs_of_rounds]
    return [
        Way(ranks if len(nodes) > 1 else (), tuple(known.get(rank) for known in partners))
        for rank, ranks in sorted(together.items())
    ]
