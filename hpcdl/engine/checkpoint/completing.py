"""What rank 0 does with a checkpoint when all ranks have left their shards, or failed to."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from hpcdl.engine.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    failure_name,
    index_name,
    superfluous,
    unfinished_name,
)
from hpcdl.engine.checkpoint.shards import to_disk
from hpcdl.telemetry import write_whole

_POLL_S = 0.02
_PATIENCE_S = 1800.0
_SPEECHLESS = "it could not write its shard, nor why; the disk may be full"


@dataclass(frozen=True)
class Desk:
    """Where the checkpoints of a run are written.

    Args:
        folder: of all of them, on a file system that all ranks see.
        attempt: a number that no earlier start of the run has used.
        keep: how many of the newest to keep.
        patience_s: how long rank 0 waits for the shards of others when its own is written.
        damaged: steps of checkpoints that were passed over, until they are written anew.
    """

    folder: Path
    attempt: int
    keep: int
    patience_s: float = _PATIENCE_S
    damaged: set[int] = field(default_factory=set)

    def unfinished(self, step: int) -> Path:
        """The folder that the ranks fill."""
        return self.folder / unfinished_name(step, self.attempt)


class Incomplete(Exception):  # noqa: N818 - an outcome that training survives, not an error of the run
    """A checkpoint cannot be completed, because of one rank."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(rank, reason)
        self.rank = rank
        self.reason = reason


def complete(desk: Desk, head: Manifest, problem: str | None) -> None:
    """Make a checkpoint of what all ranks wrote.

    Args:
        desk: where.
        head: the manifest, still without shards.
        problem: why rank 0 could not write its own, if it could not.

    Raises:
        Incomplete: a rank could not write its shard, or rank 0 the manifest; what was written is removed.
    """
    unfinished = desk.unfinished(head.step)
    try:
        found = _await_all(unfinished, head.decomposition.ranks, desk.patience_s)
        _publish(desk, head.model_copy(update={"shards": tuple(shard for shard in found if shard.entries)}))
    except (OSError, Incomplete) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        failed = error if isinstance(error, Incomplete) else Incomplete(0, str(error))
        if failed.rank == 0 and problem is not None:
            failed = Incomplete(0, problem)  # the folder may have had no room for it
        raise failed from None


def _await_all(folder: Path, ranks: int, patience_s: float) -> list[Shard]:
    """The shards of all ranks, once each of them has written or failed."""
    end = time.monotonic() + patience_s
    outcomes: dict[int, Shard | Incomplete] = {}
    while len(outcomes) < ranks:
        missing = [rank for rank in range(ranks) if rank not in outcomes]
        outcomes |= _outcomes(folder, missing)
        if time.monotonic() > end:
            raise Incomplete(missing[0], f"it wrote nothing within {patience_s:.0f} s")
        if len(outcomes) < ranks:
            time.sleep(_POLL_S)
    for rank in range(ranks):
        outcome = outcomes[rank]
        if isinstance(outcome, Incomplete):
            raise outcome
    return [outcome for _, outcome in sorted(outcomes.items()) if isinstance(outcome, Shard)]


def _outcomes(folder: Path, ranks: list[int]) -> dict[int, Shard | Incomplete]:
    """Of those among ``ranks`` that have come to an end."""
    names = {path.name for path in folder.iterdir()}
    found: dict[int, Shard | Incomplete] = {}
    for rank in ranks:
        if failure_name(rank) in names:
            reason = (folder / failure_name(rank)).read_text(encoding="utf-8")
            found[rank] = Incomplete(rank, reason or _SPEECHLESS)
        elif index_name(rank) in names:
            text = (folder / index_name(rank)).read_text(encoding="utf-8")
            found[rank] = Shard.model_validate_json(text)
    return found


def _publish(desk: Desk, manifest: Manifest) -> None:
    """Turn an unfinished folder into a checkpoint, and make room when that is on the disk.

    Else a crash of the host could leave a checkpoint without its manifest, and none before it.
    """
    unfinished, final = desk.unfinished(manifest.step), desk.folder / str(manifest.step)
    write_whole(unfinished / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    to_disk(unfinished / MANIFEST)
    to_disk(unfinished)
    if final.exists():  # it was not sound, else training would have gone on from it
        shutil.rmtree(final)
    unfinished.rename(final)
    to_disk(desk.folder)
    desk.damaged.discard(manifest.step)
    names = [path.name for path in desk.folder.iterdir()]
    for name in superfluous(names, manifest.step, desk.keep, desk.damaged):
        shutil.rmtree(desk.folder / name, ignore_errors=True)
