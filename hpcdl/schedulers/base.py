"""What a scheduler backend is: a module of pure functions. It decides; ``hpcdl.shell`` runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from hpcdl.shell import Completed
from hpcdl.sites.site import Site
from hpcdl.spec.experiment import ResolvedRun


class JobState(Enum):
    """What a scheduler says of a job, in our words."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    NODE_FAILED = "node failed"
    OUT_OF_MEMORY = "out of memory"
    PREEMPTED = "preempted"
    UNKNOWN = "unknown"  # a word we do not know; the word itself stands in Report.words

    @property
    def over(self) -> bool:
        """Whether the job will never run again."""
        return self not in (JobState.QUEUED, JobState.RUNNING, JobState.UNKNOWN)


@dataclass(frozen=True)
class Report:
    """What a scheduler said of one job."""

    state: JobState
    words: str = ""  # the scheduler's own state and reason
    exit_code: int | None = None
    signal: int | None = None


@dataclass(frozen=True)
class Query:
    """One way to ask about jobs. A scheduler offers several; each is asked for what the earlier left open."""

    command: Callable[[Sequence[str]], list[str]]
    """The program and its arguments for these job ids."""

    parse: Callable[[Completed], dict[str, Report]]
    """What it said, by job id; a job it does not know is simply absent.

    Raises SchedulerError when the answer means that the scheduler cannot be reached.
    """


@dataclass(frozen=True)
class Job:
    """Everything a script is rendered from."""

    run: ResolvedRun
    site: Site
    folder: Path  # the run folder, absolute
    attempt: int
    python: str  # interpreter of the ranks


class Scheduler(Protocol):
    """A backend module."""

    TEMPLATE: str
    """Name of the script template."""

    QUERIES: tuple[Query, ...]
    """Asked in order until every job is accounted for."""

    def directives(self, job: Job) -> list[str]:
        """Lines of the script's head, without newline: ``#SBATCH --nodes=2``."""

    def submit(self, script: Path) -> list[str]:
        """The command that submits ``script``; it is run inside the run folder."""

    def submitted(self, result: Completed) -> str:
        """The job id in the answer to ``submit``.

        Raises:
            SchedulerError: with the scheduler's own words when it refused.
        """

    def cancel(self, job_id: str) -> list[str]:
        """The command that cancels a job."""

    def cancelled(self, result: Completed) -> None:
        """Check the answer to ``cancel``.

        Raises:
            SchedulerError: with the scheduler's own words; a job that is already over is no error.
        """
