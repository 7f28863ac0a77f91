"""Which checkpoint a run goes on from: the newest that is whole and undamaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hpcdl.engine.checkpoint import shards
from hpcdl.engine.checkpoint.manifest import MANIFEST, Manifest, complete, parse, unfinished
from hpcdl.engine.groups import Peers
from hpcdl.engine.log import say
from hpcdl.engine.transport.base import Reduction
from hpcdl.errors import EngineError

_NONE = 0  # there is no checkpoint before step 1


@dataclass(frozen=True)
class Damage:
    """A file of a checkpoint that cannot be trusted, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Chosen:
    """A checkpoint to go on from."""

    folder: Path
    manifest: Manifest
    damaged: tuple[int, ...] = ()  # the steps of later ones, which were passed over


@dataclass(frozen=True)
class Jury:
    """All ranks, who judge checkpoints together: each reads its share of the files.

    Args:
        world: everybody.
        device: where messages to them are made.
        report: told by rank 0 of every checkpoint that is passed over.
    """

    world: Peers
    device: torch.device
    report: Callable[..., None]

    def newest(self, checkpoints: Path) -> Chosen | None:
        """The newest sound checkpoint, the same on all ranks; None if none was ever completed.

        Raises:
            EngineError: there are checkpoints, but all are damaged.
        """
        steps = complete(_names(checkpoints)) if self.world.index == 0 else []
        damaged: dict[int, str] = {}
        while step := self.world.agree(steps.pop() if steps else _NONE, self.device):
            folder = checkpoints / str(step)
            damage = self.judge(folder)
            if damage is None:
                return Chosen(folder, read_manifest(folder), tuple(damaged))
            damaged[step] = f"{folder / damage.file} {damage.reason}"
            say(f"warning: checkpoint {step} is passed over: {damaged[step]}")
            self.report("checkpoint damaged", step=step, file=damage.file, reason=damage.reason)
        if damaged:
            raise _nothing_left(checkpoints, list(damaged.values()))
        return None

    def judge(self, folder: Path) -> Damage | None:
        """What is wrong with one checkpoint; all ranks ask together."""
        ranks, own = self.world.size, self.world.index
        damage = inspect(folder, own, ranks)
        voice = torch.tensor([0 if damage is None else ranks - own], dtype=torch.int32, device=self.device)
        self.world.all_reduce(voice, Reduction.MAX).wait()
        loudest = int(voice.item())
        if not loudest:
            return None
        finder = ranks - loudest
        elsewhere = Damage(MANIFEST, f"or what it promises cannot be read by rank {finder}, only by others")
        return damage if finder == own else inspect(folder, finder, ranks) or elsewhere


def _nothing_left(checkpoints: Path, damaged: list[str]) -> EngineError:
    return EngineError(
        f"none of the {len(damaged)} checkpoints in {checkpoints} can be used: {'; '.join(damaged)}",
        f"bring the files back, or move {checkpoints} away to start from the beginning",
    )


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def inspect(folder: Path, index: int, parts: int) -> Damage | None:
    """The first fault among the ``index``-th of ``parts`` shares of a checkpoint's files."""
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        return Damage(MANIFEST, "is missing")
    except (OSError, ValueError) as error:
        return Damage(MANIFEST, f"cannot be read: {str(error).splitlines()[0]}")
    for shard in manifest.shards[index::parts]:
        reason = shards.fault(folder, shard)
        if reason is not None:
            return Damage(shard.file, reason)
    return None


def read_manifest(folder: Path) -> Manifest:
    """What a checkpoint says of itself.

    Raises:
        OSError, ValueError: it is not there, or is no manifest.
    """
    return parse((folder / MANIFEST).read_text(encoding="utf-8"))


def prepare(checkpoints: Path) -> None:
    """Make the folder of a run's checkpoints ready: there, writable, and free of what was never finished.

    Raises:
        EngineError: it cannot be written; better now than after a day of training.
    """
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        probe = checkpoints / ".writable"
        probe.touch()
        probe.unlink()
        for name in unfinished(_names(checkpoints)):
            shutil.rmtree(checkpoints / name, ignore_errors=True)  # a rank that was cut off may still write
    except OSError as error:
        raise EngineError(
            f"checkpoints cannot be written to {checkpoints}: {error.strerror or error}",
            "make it a folder that you may write, or set checkpoint.every: 0 to train without checkpoints",
        ) from None
