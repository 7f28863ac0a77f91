"""What is submitted together, and what waits for what: arrays cut to size, slots for points. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


def alike(items: Sequence[T], key: Callable[[T], Hashable], most: int) -> list[list[T]]:
    """Items of the same key together, in lists of at most ``most``, in the order of the first of each."""
    found: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return [same[first : first + most] for same in found.values() for first in range(0, len(same), most)]


def admitted(items: Sequence[T], door: Callable[[T], Hashable], room: Mapping[Hashable, int]) -> list[T]:
    """The first items that fit through their doors; one that is not named has room for all."""
    left = dict(room)
    taken = []
    for item in items:
        own = door(item)
        if own not in left:
            taken.append(item)
        elif left[own] > 0:
            left[own] -= 1
            taken.append(item)
    return taken


def beside(ranks: Sequence[int], devices: int, taken: int) -> int:
    """How many of the first jobs have devices of their own, one a rank, beside those that are taken.

    The first has whatever it takes where none are: nobody would ever make more room for it.
    """
    for number, size in enumerate(ranks):
        if taken and taken + size > devices:
            return number
        taken += size
    return len(ranks)


class Turn(NamedTuple):
    """When a batch may run."""

    at_once: int | None  # most of its elements that may run at a time
    waits: tuple[int, ...]  # batches that must be over before


def turns(sizes: Sequence[int], at_once: int | None) -> list[Turn]:
    """Turns for batches of these sizes in which at most ``at_once`` of all elements run at a time.

    There are ``at_once`` slots. A batch takes as many as it has elements, or all, first those that were taken
    first; it waits for the batches that had them before, each of which is over before any of its slots is
    taken again.
    """
    if at_once is None:
        return [Turn(None, ()) for _ in sizes]
    # By whom each slot is taken; None is nobody. What is to be taken next stands on the left.
    slots: deque[int | None] = deque([None] * min(at_once, sum(sizes)))
    found = []
    for number, size in enumerate(sizes):
        width = min(size, len(slots))
        holders = [slots.popleft() for _ in range(width)]
        slots.extend([number] * width)
        waits = dict.fromkeys(holder for holder in holders if holder is not None)
        found.append(Turn(width if width < size else None, tuple(waits)))
    return found
