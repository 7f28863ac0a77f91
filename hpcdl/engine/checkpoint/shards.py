"""One rank's file of a checkpoint: written whole or not at all, checked, and read in pieces."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hpcdl.engine.checkpoint.manifest import INDEX, Entry, Shard, index_name, shard_name
from hpcdl.engine.tensor.parameters import Part
from hpcdl.engine.topology import Topology
from hpcdl.telemetry import write_whole

FAILURES = (OSError, SafetensorError)
"""What reading and writing a shard raises; the library hides the system's errors in one of its own."""

_CHUNK = 16 * 1024**2  # bytes


def entry_of(part: Part, topology: Topology) -> Entry:
    """What a shard says of ``part``, as the rank of ``topology`` holds it."""
    block = part.sharding.block(topology)
    return Entry(
        name=part.name,
        shape=part.sharding.shape,
        block=tuple((piece.start, piece.stop) for piece in block),
        span=(part.span.start, part.span.stop),
        kinds=tuple(tensors_of(part)),
    )


def tensors_of(part: Part) -> dict[str, torch.Tensor]:
    """Everything that a shard holds of ``part``, by kind."""
    return part.tensors if part.index is None else {**part.tensors, INDEX: part.index}


def write(folder: Path, rank: int, entries: Sequence[Entry], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the tensors of one rank and then the index that vouches for them.

    Raises:
        OSError, SafetensorError: they could not be written; nothing is left but, perhaps, a temporary file.
    """
    path = folder / shard_name(rank)
    temporary = _temporary(path)
    save_file(dict(tensors), temporary)
    _settle(temporary)
    shard = Shard(
        file=path.name, size=temporary.stat().st_size, crc32=checksum(temporary), entries=tuple(entries)
    )
    temporary.replace(path)
    write_whole(folder / index_name(rank), shard.model_dump_json())


def discard(folder: Path, rank: int) -> None:
    """Take away what one rank could not write to the end, so that a full disk has room for its reason."""
    path = folder / shard_name(rank)
    for left in (_temporary(path), path):
        left.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_suffix(".part")


def _settle(path: Path) -> None:
    """Bring a file to the disk, readable for whoever can read the folder; the library made it private."""
    path.chmod(path.parent.stat().st_mode & 0o666)
    to_disk(path)  # the manifest must not reach the disk before what it promises


def to_disk(path: Path) -> None:
    """Return when what a file holds, or which names a folder has, outlives a crash of the host.

    Raises:
        OSError: it may not.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some file systems do so for files only
            raise
    finally:
        os.close(descriptor)


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def fault(folder: Path, shard: Shard) -> str | None:
    """What is wrong with a file; None if it is as it was written."""
    path = folder / shard.file
    try:
        size = path.stat().st_size
        if size != shard.size:
            return f"has {size} bytes instead of {shard.size}"
        return None if checksum(path) == shard.crc32 else "has another checksum than when it was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
