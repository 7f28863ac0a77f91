"""Between tensors of which only kept elements are stored and the parts of matrices that they stand for."""

from __future__ import annotations

import torch

from hpcdl.engine.checkpoint.manifest import Entry
from hpcdl.engine.checkpoint.overlap import Copy


class MisfitError(Exception):
    """An index that is not one into the part it is stored with."""


def expanded(entry: Entry, values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """All elements of a part, with zeros where it is pruned.

    Args:
        entry: the part.
        values: its kept elements.
        index: where they are.

    Raises:
        MisfitError: they do not go with each other.
    """
    elements = entry.region.elements
    if len(values) != len(index) or not _ascends(index, elements):
        raise MisfitError(
            f"{entry.name} has {len(values)} values and {len(index)} places among the {elements} elements "
            f"{entry.span[0]} to {entry.span[1]}, in another number or order or beyond the end"
        )
    return torch.zeros(elements, dtype=values.dtype).index_copy_(0, index.long(), values)


def _ascends(index: torch.Tensor, elements: int) -> bool:
    """Whether these are places among so many elements, each once and in order."""
    if not len(index):
        return True
    return bool((index[1:] > index[:-1]).all()) and int(index[0]) >= 0 and int(index[-1]) < elements


def compress(copy: Copy, elements: torch.Tensor, target: torch.Tensor, index: torch.Tensor) -> None:
    """Copy of a rectangle what the target keeps of it.

    Args:
        copy: the rectangle.
        elements: of the source, from the first of the rectangle on.
        target: kept elements of a part.
        index: where they are in it.
    """
    offset = index.long() - copy.target
    row, column = offset // copy.target_stride, offset % copy.target_stride
    inside = (offset >= 0) & (row < copy.rows) & (column < copy.columns)
    places = row[inside] * copy.source_stride + column[inside]
    target[inside] = elements.to(target.device, target.dtype)[places]
