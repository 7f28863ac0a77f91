"""Token files mapped into memory as one long row; only what is asked for is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpcdl.engine.data.files import SHARED
from hpcdl.errors import EngineError

# A map holds a file descriptor, of which a process often may have no more than 1024.
_MAPS = 64


@dataclass(frozen=True)
class Shard:
    """Where the tokens of one file stand."""

    path: str
    dtype: str  # numpy's, with its byte order
    offset: int  # bytes before the first token
    length: int  # tokens

    def map(self) -> npt.NDArray[np.unsignedinteger]:
        """Its tokens, mapped."""
        if not self.length:  # an empty file cannot be mapped
            return np.empty(0, dtype=self.dtype)
        try:
            return np.memmap(self.path, self.dtype, "r", self.offset, (self.length,))
        except (OSError, ValueError) as error:
            raise EngineError(f"cannot read {self.path}: {error}", SHARED) from None


def open_shard(path: Path, dtype: str | None) -> Shard:
    """A token file, from its header or its size alone.

    Args:
        path: a .npy file, or a file of bare little-endian ids.
        dtype: of bare ids.

    Raises:
        EngineError: it cannot be read, or holds no row of unsigned integers.
    """
    return _numpy_shard(path) if path.suffix == ".npy" else _bare_shard(path, dtype)


def _numpy_shard(path: Path) -> Shard:
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise EngineError(
            f"{path} is no readable .npy file: {error}", "write it again with numpy.save"
        ) from None
    if mapped.dtype.kind != "u" or mapped.itemsize > 4 or mapped.ndim != 1:
        raise EngineError(
            f"{path} holds {mapped.dtype} of shape {mapped.shape}, not one row of unsigned integers of at "
            "most 32 bits",
            "save token ids as a 1-D array of uint16 or uint32",
        )
    return Shard(str(path), mapped.dtype.str, mapped.offset, len(mapped))


def _bare_shard(path: Path, dtype: str | None) -> Shard:
    if dtype is None:
        raise EngineError(
            f"{path} does not say how wide its token ids are", "set data.dtype to uint16 or uint32"
        )
    width = np.dtype(dtype).newbyteorder("<")
    length, left = divmod(path.stat().st_size, width.itemsize)
    if left:
        raise EngineError(
            f"{path} has {path.stat().st_size} bytes, no whole number of {dtype} ids", "correct data.dtype"
        )
    return Shard(str(path), width.str, 0, length)


class Row:
    """The tokens of several files, one file after the other.

    Args:
        shards: in order.
        vocab: of the model; ids must be below it.
    """

    def __init__(self, shards: Sequence[Shard], vocab: int) -> None:
        self._shards = shards
        self._vocab = vocab
        self._starts = np.cumsum([0, *(shard.length for shard in shards)])
        self._mapped = lru_cache(_MAPS)(lambda index: shards[index].map())

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens ``start`` to ``stop``.

        Raises:
            EngineError: one is no token of the model, with its file and place.
        """
        tokens = np.empty(stop - start, dtype=np.int64)
        for index, first, last in self._parts(start, stop):
            at = int(self._starts[index]) + first - start
            tokens[at : at + last - first] = self._mapped(index)[first:last]
            self._check(index, first, tokens[at : at + last - first])
        return tokens

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Shard, first and last place in it of each part of ``start`` to ``stop``."""
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            begin, end = int(self._starts[index]), min(stop, int(self._starts[index + 1]))
            if start < end:
                yield index, start - begin, end - begin
            start, index = max(start, end), index + 1

    def _check(self, index: int, first: int, tokens: npt.NDArray[np.int64]) -> None:
        if tokens.max() >= self._vocab:
            place = int(np.argmax(tokens >= self._vocab))
            raise EngineError(
                f"{self._shards[index].path} has token {tokens[place]} at position {first + place}, but "
                f"model.vocab is {self._vocab}",
                "set model.vocab to that of the tokenizer that made the file",
            )
