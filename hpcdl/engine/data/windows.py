"""The sequences of one source: what each takes of the row of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hpcdl.engine.data.packing import Packing
from hpcdl.engine.data.shards import Row

IGNORED = -1
"""The target of padding: it has no loss."""

Integers = npt.NDArray[np.int64]


class Windows(Protocol):
    """Sequences of L tokens and their targets."""

    @property
    def tokens(self) -> int:
        """Tokens of the source."""

    def __len__(self) -> int:
        """How many."""

    def read(self, index: int) -> tuple[Integers, Integers]:
        """Inputs and targets of one sequence, each of shape (L,)."""

    def counted(self, indices: Integers) -> int:
        """How many targets the sequences have that are not ignored; reads no tokens."""


class Chain:
    """Documents one after the other, cut into sequences; no token is left out but the last few."""

    def __init__(self, row: Row, length: int) -> None:
        self._row = row
        self._length = length

    @property
    def tokens(self) -> int:
        """Tokens of the source."""
        return len(self._row)

    def __len__(self) -> int:
        # Each window also needs the token after its last one, which is a target.
        return max(0, (len(self._row) - 1) // self._length)

    def read(self, index: int) -> tuple[Integers, Integers]:
        """Inputs and targets, each of shape (L,)."""
        start = index * self._length
        tokens = self._row.take(start, start + self._length + 1)
        return tokens[:-1], tokens[1:]

    def counted(self, indices: Integers) -> int:
        """All of them."""
        return len(indices) * self._length


class Fit:
    """Whole documents side by side, then padding: input 0, target ``IGNORED``."""

    def __init__(self, row: Row, length: int, packing: Packing) -> None:
        self._row = row
        self._length = length
        self._packing = packing

    @property
    def tokens(self) -> int:
        """Tokens of the source."""
        return len(self._row)

    def __len__(self) -> int:
        return len(self._packing.counted_W)

    def read(self, index: int) -> tuple[Integers, Integers]:
        """Inputs and targets, each of shape (L,)."""
        inputs = np.zeros(self._length, dtype=np.int64)
        targets = np.full(self._length, IGNORED)
        at = 0
        first, last = self._packing.first_W[index : index + 2]
        for start, length, counted in self._packing.pieces_P3[first:last].tolist():
            tokens = self._row.take(start, start + max(length, counted + 1))
            inputs[at : at + length] = tokens[:length]
            targets[at : at + counted] = tokens[1 : counted + 1]
            at += length
        return inputs, targets

    def counted(self, indices: Integers) -> int:
        """As the packing says."""
        return int(self._packing.counted_W[indices].sum())


def save_packing(packing: Packing, stem: Path) -> None:
    """Write a packing as three .npy files whose names begin with ``stem``."""
    for name, values in vars(packing).items():
        np.save(_table(stem, name), values)


def open_packing(stem: Path) -> Packing:
    """The packing written there, mapped into memory."""
    return Packing(**{name: np.load(_table(stem, name), "r") for name in Packing.__dataclass_fields__})


def _table(stem: Path, name: str) -> Path:
    return stem.with_name(f"{stem.name}-{name}.npy")
