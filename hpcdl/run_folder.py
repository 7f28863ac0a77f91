"""The run folder: the name of every file of a run, and who writes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """Names every file of one run. Launcher and engine both ask it; neither joins a path itself."""

    path: Path

    @property
    def experiment(self) -> Path:
        """What the user gave, byte for byte. Written by the launcher."""
        return self.path / "experiment.yaml"

    @property
    def resolved(self) -> Path:
        """The same, complete: the engine's only input. Written by the launcher."""
        return self.path / "resolved.json"

    @property
    def plan(self) -> Path:
        """The ranked candidates with their estimates. Written by the launcher."""
        return self.path / "plan.json"

    @property
    def script(self) -> Path:
        """The batch script as submitted. Written by the launcher."""
        return self.path / "job.sh"

    @property
    def launcher_events(self) -> Path:
        """Append-only; what the launcher did and saw."""
        return self.path / "events.launcher.jsonl"

    @property
    def engine_events(self) -> Path:
        """Append-only; what rank 0 of the engine reached."""
        return self.path / "events.engine.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint, named by its step. Written by the engine."""
        return self.path / "checkpoints"

    @property
    def data(self) -> Path:
        """What rank 0 made of the data before training: tokens, documents, tables. Written by the engine."""
        return self.path / "data"

    def logs(self, attempt: int) -> Path:
        """The logs of one attempt."""
        return self.path / "logs" / f"attempt-{attempt}"

    def job_log(self, attempt: int) -> Path:
        """What the batch script and the scheduler printed."""
        return self.logs(attempt) / "job.log"

    def rank_log(self, attempt: int, rank: int) -> Path:
        """What one rank printed. Written by that rank."""
        return self.logs(attempt) / f"rank-{rank:05d}.log"

    @property
    def metrics(self) -> Path:
        """Step records, a file a rank."""
        return self.path / "metrics"

    def rank_metrics(self, rank: int) -> Path:
        """The step records of one rank. Written by that rank."""
        return self.metrics / f"rank-{rank:05d}.jsonl"

    @property
    def traces(self) -> Path:
        """What chosen steps spent their time on. Written by the engine."""
        return self.path / "traces"

    def rank_trace(self, rank: int) -> Path:
        """The newest traced steps of one rank. Written by that rank, atomically."""
        return self.traces / f"rank-{rank:05d}.json"

    def trace(self, first: int, last: int) -> Path:
        """The same of all ranks, in the Trace Event Format. Written by rank 0, atomically."""
        return self.traces / f"steps-{first}-{last}.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files. Written by rank 0."""
        return self.path / "tensorboard"

    def exits(self, attempt: int) -> Path:
        """How the ranks of one attempt ended."""
        return self.path / "exits" / f"attempt-{attempt}"

    def rank_exit(self, attempt: int, rank: int) -> Path:
        """How one rank ended. Written by that rank, atomically."""
        return self.exits(attempt) / f"rank-{rank:05d}.json"

    def job_exit(self, attempt: int) -> Path:
        """How the batch script ended: ``{"exit_code": N}``. Written by the script, atomically."""
        return self.exits(attempt) / "job.json"

    def rendezvous(self, attempt: int) -> Path:
        """Where the ranks meet: rank 0 publishes its address and port here, atomically."""
        return self.path / "rendezvous" / f"attempt-{attempt}.json"
