"""The run folder: the name of every file of a run, and who writes it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

NEARLY_OVER = "the walltime is nearly over"
"""The line that the batch script writes into a request."""


NOBODY = "nobody"
"""What stands in place of a job's id where no job is to run an attempt any more."""

BY_HAND = "process"
"""What stands there begins with, where a script was started by hand; its number and host follow."""

_OTHER_HOSTS = re.compile(r"events\.launcher\..*\.jsonl", re.DOTALL)


def array_name(element: str) -> str:
    """What the names of an array's elements begin with, from one of them; a dash and the index follow."""
    return element.rpartition("-")[0]


@dataclass(frozen=True)
class RunFolder:
    """Names every file of one run. Launcher and engine both ask it; neither joins a path itself."""

    path: Path

    def element(self, index: int | str) -> RunFolder:
        """Another element of the same array, beside this one; ``index`` may be what a scheduler replaces."""
        return RunFolder(self.path.with_name(f"{array_name(self.path.name)}-{index}"))

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

    def resolved_until(self, attempt: int) -> Path:
        """What the attempts up to this one ran with, where later ones run with another ``resolved.json``."""
        return self.path / "resolved" / f"attempt-{attempt}.json"

    def plan_until(self, attempt: int) -> Path:
        """The plan of the same attempts."""
        return self.path / "plans" / f"attempt-{attempt}.json"

    @property
    def script(self) -> Path:
        """The batch script as submitted. Written by the launcher."""
        return self.path / "job.sh"

    @property
    def launcher_events(self) -> Path:
        """Append-only; what the launcher did and saw on the host where the run was made."""
        return self.path / "events.launcher.jsonl"

    def launcher_events_of(self, host: str) -> Path:
        """The same of another host: two hosts that append to one file overwrite each other on NFS."""
        return self.path / f"events.launcher.{quote(host, safe='')}.jsonl"

    def all_launcher_events(self) -> list[Path]:
        """The files of every host that did or saw something, the one above first."""
        names = os.listdir(self.path) if self.path.is_dir() else []  # noqa: PTH208 - many times as fast as glob
        others = sorted(name for name in names if _OTHER_HOSTS.fullmatch(name))
        return [self.launcher_events, *map(self.path.joinpath, others)]

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

    def rank_error(self, attempt: int, rank: int) -> Path:
        """What a program of the user's own told of its exception. Written by ``torch.distributed``."""
        return self.exits(attempt) / f"error-{rank:05d}.json"

    def job_exit(self, attempt: int) -> Path:
        """How the batch script ended: ``{"exit_code": N}``. Written by the script, atomically."""
        return self.exits(attempt) / "job.json"

    def hosts(self, attempt: int) -> Path:
        """How each host's ranks ended, and what tells all hosts to stop, where no launcher does that."""
        return self.exits(attempt) / "hosts"

    def claim(self, attempt: int) -> Path:
        """A link that is made by whoever submits an attempt, or by its script when it is run again.

        It can be made once only, on a network file system too. Its target says who made it.
        """
        return self.path / "claims" / f"attempt-{attempt}"

    def start(self, attempt: int) -> Path:
        """A link whose target is the id of the job that runs an attempt. Made by the script, once only.

        The launcher makes it in its stead to say that no job will: see ``runs.claims.give_up``.
        """
        return self.path / "starts" / f"attempt-{attempt}"

    def placement(self, attempt: int) -> Path:
        """Where each rank found itself, and how fast it is there. Written by rank 0, atomically."""
        return self.path / "placement" / f"attempt-{attempt}.json"

    def heartbeats(self, attempt: int) -> Path:
        """Signs of life, a file a rank."""
        return self.path / "heartbeats" / f"attempt-{attempt}"

    def heartbeat(self, attempt: int, rank: int) -> Path:
        """What one rank is at, and since when. Written by that rank, atomically."""
        return self.heartbeats(attempt) / f"rank-{rank:05d}.json"

    def request(self, attempt: int) -> Path:
        """Empty; who writes a line into it asks the ranks to save and end after the step they are in.

        Made by the launcher, written by the batch script when the walltime is nearly over, read by rank 0.
        """
        return self.path / "requests" / f"attempt-{attempt}"

    def rendezvous(self, attempt: int) -> Path:
        """Where the ranks meet: rank 0 publishes its address and port here, atomically.

        Made by the batch script, empty: a name that was looked for in vain stays unseen on NFS for a while.
        """
        return self.path / "rendezvous" / f"attempt-{attempt}.json"
