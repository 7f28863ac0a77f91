"""Saving while training goes on: the step copies its parts, a thread brings them to the disk.

No thread communicates, and nobody waits in a barrier. The ranks meet in the folder of the checkpoint: each
leaves its shard and an index, or says why it could not, and rank 0 completes the checkpoint when all have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import torch

from hpcdl.engine.checkpoint import completing, shards
from hpcdl.engine.checkpoint.completing import Desk, Incomplete
from hpcdl.engine.checkpoint.manifest import Entry, Manifest, failure_name
from hpcdl.engine.log import say
from hpcdl.engine.tensor.parameters import Part
from hpcdl.engine.timeline import Timeline
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
        timeline: of this rank; one that nobody reads if not given.
    """

    def __init__(
        self,
        desk: Desk,
        topology: Topology,
        settings: Checkpoint,
        report: Report,
        timeline: Timeline | None = None,
    ) -> None:
        self._desk = desk
        self._topology = topology
        self._settings = settings
        self._report = report
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._timeline = timeline or Timeline()
        self._written: Future[str | None] | None = None
        self._concluded: Future[None] | None = None
        self._memory: dict[str, torch.Tensor] = {}
        self.failed: Incomplete | None = None  # why there is no checkpoint of the last save; rank 0 knows

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
        self._written = self._thread.submit(self._write, head.step, entries)
        if self._topology.rank == 0:
            self._concluded = self._thread.submit(self._conclude, head, self._written)
        if not self._settings.asynchronous:
            self.join()

    def join(self) -> None:
        """Return when the last save has come to an end, good or bad; on rank 0 that of all ranks."""
        if self._written is not None:
            self._written.result()
        if self._concluded is not None:
            with self._timeline.waiting("the shards of other ranks"):
                self._concluded.result()
        self._written = self._concluded = None

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

    def _write(self, step: int, entries: Sequence[Entry]) -> str | None:
        """Write this rank's shard; if that fails tell rank 0, and answer the reason."""
        rank, folder = self._topology.rank, self._desk.unfinished(step)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shards.write(folder, rank, entries, self._memory)
        except shards.FAILURES as error:
            with suppress(OSError):
                shards.discard(folder, rank)
                (folder / failure_name(rank)).write_text(str(error), encoding="utf-8")
            _warn(f"this rank could not write its part of the checkpoint of step {step}: {error}")
            return str(error)
        return None

    def _conclude(self, head: Manifest, written: Future[str | None]) -> None:
        try:
            completing.complete(self._desk, head, written.result())
            self.failed = None
        except Incomplete as failed:
            self.failed = failed
            _warn(f"no checkpoint of step {head.step}: rank {failed.rank}: {failed.reason}; training goes on")
            self._report("checkpoint failed", step=head.step, rank=failed.rank, reason=failed.reason)
        else:
            self._report("checkpoint", step=head.step)


def _warn(text: str) -> None:
    say(f"warning: {text}")
