"""Where parameters lie in flat buffers, and how those are cut into chunks and buckets (pure).

Parameters of one kind lie side by side in a *line*, in the reverse of their execution order, which is the
order in which backward reaches them. A line is cut into *chunks*, each reduced in one operation, and a chunk
into *buckets*, each updated at once (Singh and Bhatele, IPDPS 2022, section V-C). Cuts fall where they fall,
so a parameter may lie in several buckets, and sizes are exact whatever the parameters are.

Everything depends on names and sizes only, so the ranks of a group get the same answer without talking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

ALIGNMENT = 64
"""Elements: every parameter and every share of a bucket starts at a multiple, as vector loads like it."""


@dataclass(frozen=True)
class Kind:
    """What all parameters of one line have in common."""

    group: str  # the ranks that their gradients are summed over
    decay: bool  # whether weight decay applies
    shared: bool  # whether the other end of the pipeline holds them too
    on_host: bool = False  # whether parameters and gradients lie in the memory of the host


@dataclass(frozen=True)
class Piece:
    """One parameter: its name, its size and its kind."""

    name: str
    elements: int
    kind: Kind


@dataclass(frozen=True)
class Run:
    """Elements of one parameter that lie side by side."""

    name: str
    begin: int  # in the flattened parameter
    at: slice  # in the span that was asked for


@dataclass(frozen=True)
class Line:
    """The parameters of one kind, each at an aligned place, with zeros between and after them.

    Args:
        kind: of all of them.
        pieces: in the order in which backward reaches them.
        ranks: the size of the group; the length is a multiple of ``ranks · ALIGNMENT``.
    """

    kind: Kind
    pieces: tuple[Piece, ...]
    ranks: int

    @property
    def starts(self) -> dict[str, int]:
        """Where each parameter begins."""
        sizes = (_up(piece.elements, ALIGNMENT) for piece in self.pieces)
        return {
            piece.name: start for piece, start in zip(self.pieces, accumulate(sizes, initial=0), strict=False)
        }

    @property
    def elements(self) -> int:
        """Its length."""
        return _up(sum(_up(piece.elements, ALIGNMENT) for piece in self.pieces), self.ranks * ALIGNMENT)

    def bucket(self, limit: int) -> int:
        """Elements of a bucket of about ``limit``, such that the group can share it equally."""
        return _up(limit, self.ranks * ALIGNMENT)

    def runs(self, span: slice) -> Iterator[Run]:
        """What lies in ``span`` of the line; padding is nobody's."""
        starts = self.starts
        for piece in self.pieces:
            start = starts[piece.name]
            first, last = max(span.start, start), min(span.stop, start + piece.elements)
            if first < last:
                yield Run(piece.name, first - start, slice(first - span.start, last - span.start))


@dataclass(frozen=True)
class Chunk:
    """A span of a line that is reduced in one operation."""

    line: Line
    span: slice

    def share(self, index: int, parts: int) -> slice:
        """The ``index``-th of so many equal parts of it, in the line."""
        width = (self.span.stop - self.span.start) // parts
        return slice(self.span.start + index * width, self.span.start + (index + 1) * width)


def lines(pieces: Sequence[Piece], ranks: Mapping[str, int]) -> list[Line]:
    """The lines of a rank.

    Args:
        pieces: its parameters in execution order of the forward pass.
        ranks: the size of each group by its name.
    """
    kinds: dict[Kind, list[Piece]] = {}
    for piece in reversed(pieces):
        kinds.setdefault(piece.kind, []).append(piece)
    return [Line(kind, tuple(members), ranks[kind.group]) for kind, members in kinds.items()]


def chunks(cut: Sequence[Line], pieces: Sequence[Piece], limit: int, buckets: int) -> list[Chunk]:
    """All chunks of the lines ``cut``, in the order in which backward completes them.

    Args:
        cut: what ``lines`` made of ``pieces``.
        pieces: in execution order of the forward pass.
        limit: elements of a bucket.
        buckets: how many make a chunk.
    """
    reached = {piece.name: place for place, piece in enumerate(reversed(pieces))}
    made = [
        Chunk(line, span)
        for line in cut
        for span in spans(slice(0, line.elements), line.bucket(limit) * buckets)
    ]
    return sorted(made, key=lambda chunk: _completed(chunk, reached))


def _completed(chunk: Chunk, reached: Mapping[str, int]) -> int:
    """When backward has reached all that lies in ``chunk``; what is padding only waits for nobody."""
    return max((reached[run.name] for run in chunk.line.runs(chunk.span)), default=0)


def spans(whole: slice, width: int) -> list[slice]:
    """``whole`` in pieces of ``width``; the last may be shorter."""
    return [slice(start, min(start + width, whole.stop)) for start in range(whole.start, whole.stop, width)]


def _up(size: int, multiple: int) -> int:
    """The smallest multiple that is at least ``size``, and at least one."""
    return max(1, -(-size // multiple)) * multiple
