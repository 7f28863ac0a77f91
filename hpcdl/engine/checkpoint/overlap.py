"""Which elements of one part of a matrix lie in another part of it. Pure: no torch.

A part is a run of the flattened block of a matrix, so it is at most three rectangles of the matrix: the
rest of a row, whole rows, the beginning of a row. What two parts share is what their rectangles share,
rectangles again, and each lies in both parts at a regular stride. So a matrix is copied in a few strided
pieces however the two decompositions cut it. A vector is a matrix of one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Interval = tuple[int, int]  # first, and one after the last


class Rectangle(NamedTuple):
    """Some rows and some columns of a matrix."""

    rows: Interval
    columns: Interval


@dataclass(frozen=True)
class Region:
    """The elements of one part.

    Args:
        rows: of the block, in the full matrix.
        columns: of the block.
        span: of the flattened block, row by row.
    """

    rows: Interval
    columns: Interval
    span: Interval

    @classmethod
    def of(cls, block: Sequence[Interval], span: Interval) -> Region:
        """From the block's interval in each dimension of a vector or a matrix."""
        rows, columns = ((0, 1), *block)[-2:]
        return cls(rows, columns, span)

    @property
    def width(self) -> int:
        """Columns of the block."""
        return self.columns[1] - self.columns[0]

    @property
    def elements(self) -> int:
        """How many."""
        return self.span[1] - self.span[0]

    def rectangles(self) -> Iterator[Rectangle]:
        """The elements as disjoint rectangles of the full matrix, at most three."""
        (start, stop), width = self.span, self.width
        while start < stop:
            row, column = divmod(start, width)
            if column or stop - start < width:
                rows, taken = 1, min(width - column, stop - start)
            else:
                rows, taken = (stop - start) // width, width
            top, left = self.rows[0] + row, self.columns[0] + column
            yield Rectangle((top, top + rows), (left, left + taken))
            start += rows * taken

    def place(self, row: int, column: int) -> int:
        """Where in the part an element of the full matrix stands."""
        return (row - self.rows[0]) * self.width + column - self.columns[0] - self.span[0]


@dataclass(frozen=True)
class Copy:
    """A rectangle that two parts share, as each of them holds it."""

    rows: int
    columns: int
    source: int  # place of its first element
    source_stride: int  # from one row to the next
    target: int
    target_stride: int

    @property
    def elements(self) -> int:
        """How many."""
        return self.rows * self.columns

    @property
    def source_stop(self) -> int:
        """One after the last place in the source."""
        return self.source + (self.rows - 1) * self.source_stride + self.columns


def copies(source: Region, target: Region) -> list[Copy]:
    """Everything that ``target`` can take from ``source``, both parts of the same matrix."""
    shared = [
        Rectangle(_common(one.rows, other.rows), _common(one.columns, other.columns))
        for one in source.rectangles()
        for other in target.rectangles()
    ]
    return [
        _copy(source, target, rows, columns) for rows, columns in shared if _some(rows) and _some(columns)
    ]


def _copy(source: Region, target: Region, rows: Interval, columns: Interval) -> Copy:
    first = (rows[0], columns[0])
    return Copy(
        rows=rows[1] - rows[0],
        columns=columns[1] - columns[0],
        source=source.place(*first),
        source_stride=source.width,
        target=target.place(*first),
        target_stride=target.width,
    )


def _common(one: Interval, other: Interval) -> Interval:
    return max(one[0], other[0]), min(one[1], other[1])


def _some(interval: Interval) -> bool:
    return interval[0] < interval[1]
