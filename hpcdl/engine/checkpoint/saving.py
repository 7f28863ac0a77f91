"""Saving while training goes on: the step copies its parts, a thread brings them to the disk.

No thread communicates, and nobody waits in a barrier. The ranks meet in the folder of the checkpoint: each
leaves its shard and an index, or says why it could not, and rank 0 completes the checkpoint when all have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from hpcdl.engine.checkpoint import completing, shards
from hpcdl.engine.checkpoint.completing import Desk, Incomplete
from hpcdl.engine.checkpoint.manifest import Entry, Manifest, failure_name
from hpcdl.engine.tensor.parameters import Part
from hpcdl.engine.topology import Topology
from hpcdl.spec.checkpoint import Checkpoint

Report = Callable[..., None]  # called with the kind of an event and its details


class Saver:
    """The checkpoints that one rank writes.

    Args:
        desk: where.
        topology: which rank this is.
        settings: how many are kept, and whether the step waits for the disk.
        report: told by rank 0 of every checkpoint that is complete or has failed.
    """

    def __init__(self, desk: Desk, topology: Topology, settings: Checkpoint, report: Report) -> None:
        self._desk = desk
        self._topology = topology
        self._settings = settings
        self._report = report
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._memory: dict[str, torch.Tensor] = {}

    def save(self, head: Manifest, parts: Sequence[Part]) -> None:
        """Keep ``parts`` as they are now; returns when they may change.

        Args:
            head: the manifest, still without shards.
            parts: everything this rank keeps; it saves those that are its to write.
        """
        self.join()
        written = [part for part in parts if part.writes]
        entries = [shards.entry_of(part, self._topology) for part in written]
        self._copy(written, entries)
        self._pending = self._thread.submit(self._save, head, entries)
        if not self._settings.asynchronous:
            self.join()

    def join(self) -> None:
        """Return when the last save has come to an end, good or bad; on rank 0 that of all ranks."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _copy(self, parts: Sequence[Part], entries: Sequence[Entry]) -> None:
        """Into memory that is allocated once, or when less is kept; pinned where they lie on a GPU."""
        tensors = {
            entry.key(kind): tensor.detach()
            for part, entry in zip(parts, entries, strict=True)
            for kind, tensor in shards.tensors_of(part).items()
        }
        self._memory = {key: self._room(key, tensor) for key, tensor in tensors.items()}
        for key, tensor in tensors.items():
            self._memory[key].copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()

    def _room(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """What the last save used, unless pruning has changed it since."""
        room = self._memory.get(key)
        if room is None or room.shape != tensor.shape:
            room = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return room

    def _save(self, head: Manifest, entries: Sequence[Entry]) -> None:
        problem = self._write(self._desk.unfinished(head.step), entries)
        if problem is not None:
            _warn(f"this rank could not write its part of the checkpoint of step {head.step}: {problem}")
        if self._topology.rank == 0:
            self._conclude(head, problem)

    def _write(self, folder: Path, entries: Sequence[Entry]) -> str | None:
        """Write this rank's shard; if that fails tell rank 0, and answer the reason."""
        rank = self._topology.rank
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shards.write(folder, rank, entries, self._memory)
        except shards.FAILURES as error:
            with suppress(OSError):
                shards.discard(folder, rank)
                (folder / failure_name(rank)).write_text(str(error), encoding="utf-8")
            return str(error)
        return None

    def _conclude(self, head: Manifest, problem: str | None) -> None:
        try:
            completing.complete(self._desk, head, problem)
        except Incomplete as failed:
            _warn(f"no checkpoint of step {head.step}: rank {failed.rank}: {failed.reason}; training goes on")
            self._report("checkpoint failed", step=head.step, rank=failed.rank, reason=failed.reason)
        else:
            self._report("checkpoint", step=head.step)


def _warn(text: str) -> None:
    print(f"warning: {text}", flush=True)  # noqa: T201 - the log
