"""Which gradients are reduced together, and in which order.

Backward reaches parameters in the reverse of their execution order, so buckets are filled in that
order: the first bucket is complete while most of the backward is still to come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Piece:
    """One parameter's gradient: its name, its size, and the group it is reduced over."""

    name: str
    elements: int
    group: str


@dataclass(frozen=True)
class Bucket:
    """Gradients that lie side by side in one buffer and are reduced in one operation."""

    group: str
    pieces: tuple[Piece, ...]

    @property
    def elements(self) -> int:
        """Size of the buffer."""
        return sum(piece.elements for piece in self.pieces)

    @property
    def offsets(self) -> dict[str, int]:
        """Where each piece begins in the buffer."""
        starts = accumulate((piece.elements for piece in self.pieces), initial=0)
        return {piece.name: start for piece, start in zip(self.pieces, starts, strict=False)}


def layout(pieces: Sequence[Piece], limit: int) -> tuple[Bucket, ...]:
    """Buckets in the order in which backward completes them.

    Args:
        pieces: the gradients in execution order of the forward pass.
        limit: elements a bucket may hold; a larger piece gets a bucket of its own.

    Every rank of a group gets the same answer, because it depends on names and sizes only.
    """
    open_buckets: dict[str, list[Piece]] = {}
    closed: list[Bucket] = []
    for piece in reversed(pieces):
        waiting = open_buckets.setdefault(piece.group, [])
        if waiting and sum(other.elements for other in waiting) + piece.elements > limit:
            closed.append(Bucket(piece.group, tuple(waiting)))
            waiting = open_buckets[piece.group] = []
        waiting.append(piece)
    closed += [Bucket(group, tuple(waiting)) for group, waiting in open_buckets.items() if waiting]
    position = {piece.name: place for place, piece in enumerate(reversed(pieces))}
    return tuple(sorted(closed, key=lambda bucket: position[bucket.pieces[-1].name]))
