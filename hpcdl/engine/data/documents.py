"""Text to tokens, and where documents end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpcdl.engine.data.encoders import Encoder
from hpcdl.engine.data.files import SHARED
from hpcdl.engine.data.shards import Shard
from hpcdl.errors import EngineError
from hpcdl.spec.data import Source

Integers = npt.NDArray[np.int64]

_BLOCK = 1 << 22  # tokens looked through at once


@dataclass(frozen=True)
class Documents:
    """Documents one after the other."""

    shards: tuple[Shard, ...]
    ends: Integers
    """The place after the last token of each."""


def tokenise(source: Source, files: Sequence[Path], encoder: Encoder, target: Path) -> Documents:
    """Write the tokens of text ``files`` to ``target``, a document a file, at most ``max_bytes`` of text.

    Raises:
        EngineError: a file cannot be read, or all are empty.
    """
    between = encoder.between if source.document_end is None else source.document_end
    separator = np.array([] if between is None else [between], dtype=encoder.dtype)
    ends: list[int] = []
    with target.open("wb") as out:
        for content in _contents(source, files):
            if ends:
                out.write(separator.tobytes())
                ends[-1] += len(separator)
            for tokens in encoder.encode(content):
                out.write(tokens.tobytes())
            ends.append(out.tell() // encoder.dtype.itemsize)
    if not ends or not ends[-1]:
        raise EngineError(
            f"no text to train on in {source.path or source.source}: its files that match "
            f"{source.pattern!r} are empty",
            "correct data.path or data.pattern",
        )
    return Documents((Shard(target.name, encoder.dtype.str, 0, ends[-1]),), np.array(ends, dtype=np.int64))


def _contents(source: Source, files: Sequence[Path]) -> Iterator[bytes]:
    left = source.max_bytes
    for path in files:
        if left <= 0:
            return
        try:
            with path.open("rb") as file:
                content = file.read(left)
        except OSError as error:
            raise EngineError(f"cannot read {path}: {error.strerror or error}", SHARED) from None
        left -= len(content)
        yield content


def find_documents(shards: Sequence[Shard], document_end: int | None) -> Documents:
    """Documents in token files: a file ends one, and so does every ``document_end``."""
    found = [np.empty(0, dtype=np.int64)]
    start = 0
    for shard in shards:
        if document_end is not None:
            found += [start + places for places in _ends_in(shard, document_end)]
        start += shard.length
        found.append(np.array([start]))
    ends = np.unique(np.concatenate(found))
    return Documents(tuple(shards), ends[ends > 0])


def _ends_in(shard: Shard, document_end: int) -> Iterator[Integers]:
    tokens = shard.map()
    for first in range(0, shard.length, _BLOCK):
        yield first + 1 + np.flatnonzero(tokens[first : first + _BLOCK] == document_end)
