"""Checkpoints with a file a rank: shards first, manifest last, folder renamed when complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpcdl.engine.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    complete,
    degrees_of,
    dump,
    is_whole,
    parse,
    shard_name,
    superfluous,
    unfinished_name,
)
from hpcdl.errors import EngineError
from hpcdl.spec.decomposition import Decomposition

_NONE = 0  # there is no checkpoint before step 1


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run as one rank sees them."""

    folder: Path
    decomposition: Decomposition
    rank: int
    keep: int

    def save(self, step: int, state: dict[str, Any], barrier: Callable[[], None]) -> None:
        """Write the state of this rank; returns when the checkpoint of all ranks is complete.

        Args:
            step: the last step that is in ``state``.
            state: tensors and plain values, in dicts and lists.
            barrier: returns when every rank has called it.
        """
        unfinished = self.folder / unfinished_name(step)
        unfinished.mkdir(parents=True, exist_ok=True)
        _write(unfinished / shard_name(self.rank), state)
        barrier()
        if self.rank == 0:
            manifest = Manifest(step, degrees_of(self.decomposition), self.decomposition.ranks)
            (unfinished / MANIFEST).write_text(dump(manifest), encoding="utf-8")
            self._publish(unfinished, step)
        barrier()

    def _publish(self, unfinished: Path, step: int) -> None:
        final = self.folder / str(step)
        if final.exists():  # it was not whole, else training would have gone on from it
            shutil.rmtree(final)
        unfinished.rename(final)
        for name in superfluous([path.name for path in self.folder.iterdir()], step, self.keep):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def newest(self, of_rank_0: Callable[[int], int] | None = None) -> tuple[int, dict[str, Any]] | None:
        """Step and state of this rank in the newest whole checkpoint; None if there is none.

        Args:
            of_rank_0: called by every rank; returns the number that rank 0 called it with. Ranks that
                see a network file system in different states then still go on from the same step,
                and only rank 0 looks at every shard. Without it every rank looks for itself.

        Raises:
            EngineError: it was written by another decomposition, or cannot be read.
        """
        step = self._newest_step() if self.rank == 0 or of_rank_0 is None else _NONE
        if of_rank_0 is not None:
            step = of_rank_0(step)
        if step == _NONE:
            return None
        return step, self._load(self.folder / str(step))

    def _newest_step(self) -> int:
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        for step in reversed(complete(names)):
            manifest = _manifest(self.folder / str(step))
            if manifest is not None and is_whole(self.folder / str(step), manifest):
                return step
        return _NONE

    def _load(self, folder: Path) -> dict[str, Any]:
        manifest = _manifest(folder)
        if manifest is None:
            raise EngineError(
                f"rank {self.rank} cannot read {folder / MANIFEST}, which rank 0 can",
                "check that the run folder is shared by all nodes",
            )
        self._check(folder, manifest)
        return _read(folder / shard_name(self.rank))

    def _check(self, folder: Path, manifest: Manifest) -> None:
        if manifest.degrees != degrees_of(self.decomposition):
            raise EngineError(
                f"checkpoint {folder} was written by the decomposition {manifest.degrees}, but "
                f"this run has {degrees_of(self.decomposition)}",
                "continue with the decomposition that wrote it: give it as parallelism: in the experiment",
            )


def _write(shard: Path, state: dict[str, Any]) -> None:
    with shard.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())  # the manifest must not reach the disk before what it promises


def _read(shard: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(shard, weights_only=True, map_location="cpu")
    except Exception as error:  # noqa: BLE001 - a damaged file makes torch fail in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise EngineError(
            f"{shard} cannot be read: {reason}",
            f"move {shard.parent} away to go on from the checkpoint before it",
        ) from None
    return state


def _manifest(folder: Path) -> Manifest | None:
    try:
        return parse((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError:
        return None
