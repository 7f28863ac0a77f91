"""What a checkpoint says of itself. Pure: no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcdl.spec.decomposition import Decomposition

MANIFEST = "manifest.json"
_STEP_FOLDER = re.compile(r"\d+")
_UNFINISHED = re.compile(r"\.\d+\.part")


@dataclass(frozen=True)
class Manifest:
    """The last file of a checkpoint to be written: with it the checkpoint is complete."""

    step: int
    degrees: dict[str, int]  # of the decomposition that wrote it
    shards: int  # files, one a rank
    format: int = 1


def degrees_of(d: Decomposition) -> dict[str, int]:
    """The part of a decomposition that decides which rank holds what."""
    return {"data": d.data, "pipeline": d.pipeline, "x": d.x, "y": d.y, "z": d.z}


def dump(manifest: Manifest) -> str:
    """As JSON."""
    return json.dumps(asdict(manifest), indent=2) + "\n"


def parse(text: str) -> Manifest | None:
    """From JSON; None if it is not a manifest of this format."""
    try:
        manifest = Manifest(**json.loads(text))
    except (ValueError, TypeError):
        return None
    return manifest if manifest.format == 1 else None


def shard_name(rank: int) -> str:
    """The file of one rank."""
    return f"rank-{rank:05d}.pt"


def unfinished_name(step: int) -> str:
    """The folder of a checkpoint that is still being written."""
    return f".{step}.part"


def complete(names: Iterable[str]) -> list[int]:
    """Steps of the finished checkpoints among folder names, oldest first."""
    return sorted(int(name) for name in names if _STEP_FOLDER.fullmatch(name))


def superfluous(names: Iterable[str], step: int, keep: int) -> list[str]:
    """Folders to remove once the checkpoint of ``step`` is complete.

    These are all but the newest ``keep`` up to ``step``, and what was never finished. A later one
    would have been gone on from if it were sound; it is left for the user to look at, and does not
    count, or it would push out a sound one.
    """
    names = list(names)
    old = [found for found in complete(names) if found <= step][:-keep]
    return [str(found) for found in old] + [name for name in names if _UNFINISHED.fullmatch(name)]


def is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether every shard that the manifest promises is there."""
    return all((folder / shard_name(rank)).is_file() for rank in range(manifest.shards))
