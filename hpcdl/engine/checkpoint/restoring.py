"""Going on from a checkpoint, whatever decomposition wrote it and whatever decomposition reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from hpcdl.engine.checkpoint import pruned, shards
from hpcdl.engine.checkpoint.manifest import INDEX, Entry, Manifest
from hpcdl.engine.checkpoint.overlap import Copy, copies
from hpcdl.engine.tensor.parameters import Held, Part
from hpcdl.engine.topology import Topology
from hpcdl.errors import EngineError

MASK = "mask"
"""The kind of tensor to ask for where the kept elements shall be true and others false; none is stored."""
Read = Callable[[str, slice], torch.Tensor]  # the key of a tensor, and which elements of it


@dataclass(frozen=True)
class Target:
    """Elements to be filled: where they belong and, by kind, the flat tensors that take them."""

    entry: Entry
    tensors: dict[str, torch.Tensor]
    index: torch.Tensor | None = None  # int32, where in the span the elements of the tensors are; None: all


@dataclass(frozen=True)
class _Piece:
    """What one target takes from one entry of a shard."""

    target: Target
    source: Entry
    copies: list[Copy]

    def bring(self, read: Read) -> None:
        """Read the run of elements that spans all copies, once a kind, and copy each."""
        start = min(copy.source for copy in self.copies)
        stop = max(copy.source_stop for copy in self.copies)
        for kind, tensor in self.target.tensors.items():
            elements = self._elements(kind, slice(start, stop), read)
            for copy in self.copies:
                if self.target.index is None:
                    _copy(copy, elements, start, tensor)
                else:
                    pruned.compress(copy, elements[copy.source - start :], tensor, self.target.index)

    def _elements(self, kind: str, where: slice, read: Read) -> torch.Tensor:
        """A run of elements of the source, with zeros where it is pruned."""
        key, everything = self.source.key, slice(None)
        if not self.source.pruned:
            return torch.ones(where.stop - where.start) if kind == MASK else read(key(kind), where)
        index = read(key(INDEX), everything)
        values = torch.ones(len(index)) if kind == MASK else read(key(kind), everything)
        return pruned.expanded(self.source, values, index)[where]


def _copy(copy: Copy, elements: torch.Tensor, start: int, target: torch.Tensor) -> None:
    shape, offset = (copy.rows, copy.columns), target.storage_offset()
    theirs = elements.as_strided(
        shape, (copy.source_stride, 1), elements.storage_offset() + copy.source - start
    )
    target.as_strided(shape, (copy.target_stride, 1), offset + copy.target).copy_(theirs)


def whole_of(held: Held, topology: Topology, tensors: dict[str, torch.Tensor]) -> Target:
    """All that a rank holds of a parameter, to be filled into flat ``tensors``."""
    part = Part(held.name, held.sharding, held.sharding.span(topology), tensors, writes=False)
    return Target(shards.entry_of(part, topology), tensors)


def masks_of(
    folder: Path, manifest: Manifest, held: Sequence[Held], topology: Topology
) -> dict[str, torch.Tensor]:
    """Flat masks of what a rank holds, of the parameters that are pruned in a checkpoint.

    Raises:
        EngineError: the checkpoint does not hold all of it, or masks that do not fit the model.
    """
    names = {entry.name for shard in manifest.shards for entry in shard.entries if entry.pruned}
    found = [one for one in held if one.name in names]
    masks = {one.name: torch.zeros(one.parameter.numel(), dtype=torch.bool) for one in found}
    fill(folder, manifest, [whole_of(one, topology, {MASK: masks[one.name]}) for one in found])
    return masks


def targets_of(parts: Sequence[Part], topology: Topology, kinds: Sequence[str] | None = None) -> list[Target]:
    """What a rank wants filled of its ``parts``: everything, or only tensors of some kinds."""
    return [
        Target(
            shards.entry_of(part, topology),
            {kind: tensor for kind, tensor in part.tensors.items() if kinds is None or kind in kinds},
            part.index,
        )
        for part in parts
    ]


@torch.no_grad()
def fill(folder: Path, manifest: Manifest, targets: Sequence[Target]) -> None:
    """Fill ``targets`` in place, reading no more than what overlaps.

    Raises:
        EngineError: the checkpoint does not hold all of it, or a file cannot be read.
    """
    sources: dict[str, list[tuple[str, Entry]]] = {}
    for shard in manifest.shards:
        for entry in shard.entries:
            sources.setdefault(entry.name, []).append((shard.file, entry))
    pieces: dict[str, list[_Piece]] = {}
    for target in targets:
        found = _pieces(target, sources.get(target.entry.name, []))
        _check_whole(folder, target, [piece for _, piece in found])
        for file, piece in found:
            pieces.setdefault(file, []).append(piece)
    for file, wanted in pieces.items():
        _read(folder / file, wanted)


def _pieces(target: Target, sources: Sequence[tuple[str, Entry]]) -> list[tuple[str, _Piece]]:
    """What ``target`` takes from each of the entries of its parameter, by the file they are in."""
    region = target.entry.region
    found = [(file, _Piece(target, entry, copies(entry.region, region))) for file, entry in sources]
    return [(file, piece) for file, piece in found if piece.copies]


def _check_whole(folder: Path, target: Target, pieces: Sequence[_Piece]) -> None:
    for kind in target.tensors:
        able = [piece for piece in pieces if kind == MASK or kind in piece.source.kinds]
        held = sum(copy.elements for piece in able for copy in piece.copies)
        if held != target.entry.region.elements:
            raise EngineError(
                f"checkpoint {folder} holds {held} of {target.entry.region.elements} elements of "
                f"{target.entry.name} ({kind}) that one rank needs",
                f"move {folder} away to go on from the checkpoint before it",
            )


def _read(path: Path, pieces: Sequence[_Piece]) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            for piece in pieces:
                piece.bring(lambda key, where: file.get_slice(key)[where])
    except shards.FAILURES as error:
        raise EngineError(
            f"{path} cannot be read: {error}",
            f"move {path.parent} away to go on from the checkpoint before it",
        ) from None
    except pruned.MisfitError as error:
        raise EngineError(
            f"the masks in {path} do not fit the model: {error}",
            f"move {path.parent} away to go on from the checkpoint before it",
        ) from None
