"""Checkpoints with a file a rank: shards first, manifest last, folder renamed when complete."""

from __future__ import annotations

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
        torch.save(state, unfinished / shard_name(self.rank))
        barrier()
        if self.rank == 0:
            manifest = Manifest(step, degrees_of(self.decomposition), self.decomposition.ranks)
            (unfinished / MANIFEST).write_text(dump(manifest), encoding="utf-8")
            self._publish(unfinished, self.folder / str(step))
        barrier()

    def _publish(self, unfinished: Path, final: Path) -> None:
        if final.exists():  # a step that was repeated after a restart from an older checkpoint
            shutil.rmtree(final)
        unfinished.rename(final)
        for name in superfluous([path.name for path in self.folder.iterdir()], self.keep):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of this rank in the newest complete checkpoint; None if there is none.

        Raises:
            EngineError: it was written by another decomposition.
        """
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        for step in reversed(complete(names)):
            folder = self.folder / str(step)
            manifest = _manifest(folder)
            if manifest is not None and is_whole(folder, manifest):
                self._check(folder, manifest)
                shard = folder / shard_name(self.rank)
                return manifest.step, torch.load(shard, weights_only=True, map_location="cpu")
        return None

    def _check(self, folder: Path, manifest: Manifest) -> None:
        if manifest.degrees != degrees_of(self.decomposition):
            raise EngineError(
                f"checkpoint {folder} was written by the decomposition {manifest.degrees}, but "
                f"this run has {degrees_of(self.decomposition)}",
                "continue with the decomposition that wrote it: give it as parallelism: in the experiment",
            )


def _manifest(folder: Path) -> Manifest | None:
    try:
        return parse((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError:
        return None
