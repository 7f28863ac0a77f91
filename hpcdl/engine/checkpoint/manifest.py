"""What a checkpoint says of itself. Pure: no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from hpcdl.engine.checkpoint.overlap import Interval, Region
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.entry import AnyModel
from hpcdl.spec.frozen import Frozen

MANIFEST = "manifest.json"
INDEX = "index"
"""The kind of tensor, int32, that says where in the span the elements of the others are."""
FORMAT = 2  # 1 was a pickle a rank, for the same decomposition only
_STEP_FOLDER = re.compile(r"\d+")
_UNFINISHED = re.compile(r"\.(\d+)\.[0-9a-f]+\.part")


class Entry(Frozen):
    """One part of a parameter in a shard, with every kind of tensor that is kept of it."""

    name: str
    shape: tuple[int, ...]  # of the full parameter
    block: tuple[Interval, ...]  # in each of its dimensions
    span: Interval  # of the flattened block
    kinds: tuple[str, ...]

    @property
    def region(self) -> Region:
        """Which elements of the parameter."""
        return Region.of(self.block, self.span)

    @property
    def pruned(self) -> bool:
        """Whether its tensors have the kept elements only, and an index says which."""
        return INDEX in self.kinds

    def key(self, kind: str) -> str:
        """The name of one of its tensors in the shard."""
        return f"{self.name}|{kind}|{self.span[0]}-{self.span[1]}"


class Shard(Frozen):
    """What one rank wrote."""

    file: str
    size: int  # bytes
    crc32: int  # of the whole file
    entries: tuple[Entry, ...]


class Manifest(Frozen):
    """The last file of a checkpoint to be written: with it the checkpoint is complete."""

    format: int = FORMAT
    step: int
    loss: float  # of that step
    counters: dict[str, float]  # what the learner keeps besides tensors
    model: AnyModel
    decomposition: Decomposition  # that wrote it; any other can read it
    shards: tuple[Shard, ...] = ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The full shape of every parameter."""
        return {entry.name: entry.shape for shard in self.shards for entry in shard.entries}

    @property
    def pruned(self) -> bool:
        """Whether anything is."""
        return any(entry.pruned for shard in self.shards for entry in shard.entries)


def parse(text: str) -> Manifest:
    """From JSON.

    Raises:
        ValueError: it is no manifest of this format.
    """
    manifest = Manifest.model_validate_json(text)
    if manifest.format != FORMAT:
        raise ValueError(f"its format is {manifest.format}, this version reads {FORMAT}")
    return manifest


def shard_name(rank: int) -> str:
    """The file with the tensors of one rank."""
    return f"rank-{rank:05d}.safetensors"


def index_name(rank: int) -> str:
    """The file that says what is in it, written after it."""
    return f"rank-{rank:05d}.json"


def failure_name(rank: int) -> str:
    """The file that says why there is neither."""
    return f"rank-{rank:05d}.failed"


def unfinished_name(step: int, attempt: int) -> str:
    """The folder of a checkpoint that is still being written.

    ``attempt`` is a number of its own for every start of the run, so that files which a killed one left never
    pass for those of this one.
    """
    return f".{step}.{attempt:x}.part"


def complete(names: Iterable[str]) -> list[int]:
    """Steps of the finished checkpoints among folder names, oldest first."""
    return sorted(int(name) for name in names if _STEP_FOLDER.fullmatch(name))


def unfinished(names: Iterable[str]) -> dict[str, int]:
    """The folders that were never finished, and the step of each."""
    return {name: int(found[1]) for name in names if (found := _UNFINISHED.fullmatch(name))}


def superfluous(names: Iterable[str], step: int, keep: int, damaged: Collection[int] = ()) -> list[str]:
    """Folders to remove once the checkpoint of ``step`` is complete.

    These are all but the newest ``keep`` up to ``step``, and what was never finished up to there. Those of
    the steps ``damaged`` do not count, or they would push out sound ones; they are left for the user to look
    at until there are ``keep`` sound ones. A later one would have been gone on from if it were sound: it
    does not count either, and is left. A later one that is unfinished is being written by ranks that are
    ahead.
    """
    names = list(names)
    past = [found for found in complete(names) if found <= step]
    sound = [found for found in past if found not in damaged]
    old = sound[:-keep]
    if len(sound) >= keep:
        old += [found for found in past if found in damaged]
    return [str(found) for found in old] + [name for name, of in unfinished(names).items() if of <= step]
