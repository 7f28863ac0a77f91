"""What a scheduler backend is: a module of pure functions. It decides; ``hpcdl.shell`` runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from hpcdl.run_folder import array_name
from hpcdl.shell import Completed
from hpcdl.sites.site import Site
from hpcdl.spec.experiment import BaseRun


class Origin(NamedTuple):
    """Why a line stands in a script."""

    kind: Literal["spec", "site", "flag", "template", "default"]
    key: str = ""  # of a spec or a site, as a dotted path: resources.walltime; of a flag: --after

    def __str__(self) -> str:
        return f"{self.kind} {self.key}".strip()


class Directive(NamedTuple):
    """One request to the scheduler."""

    option: str  # as a site's forbidden list spells it: --gres, -k
    value: str = ""  # with what separates it from the option: "=4", " oed"
    origin: Origin = Origin("default")
    optional: bool = False  # whether a job is still right without it

    @property
    def text(self) -> str:
        """The line without the scheduler's prefix."""
        return self.option + self.value


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
    past: bool = False  # whether accounting alone still knows the job


@dataclass(frozen=True)
class Query:
    """One way to ask about jobs. A scheduler offers several; each is asked for what the earlier left open."""

    command: Callable[[Sequence[str]], list[str]]
    """The program and its arguments for these job ids, all of one controller."""

    parse: Callable[[Completed], dict[str, Report]]
    """What it said, by job id; a job it does not know is simply absent.

    Raises SchedulerError when the answer means that the scheduler cannot be reached.
    """

    accounting: bool = False
    """Whether it asks for jobs of the past, which a site may forbid its users."""


@dataclass(frozen=True)
class Naming:
    """One way to find a job by its name. Each that a scheduler has is asked until it is found."""

    command: Callable[[str, str, Site], list[str]]
    """The program and its arguments for this name, for jobs of this user at this site."""

    parse: Callable[[Completed, Site], list[str]]
    """The ids of the jobs of that name, as ``submitted`` gives them; of an array one.

    Raises SchedulerError when the answer means that the scheduler cannot be reached.
    """


@dataclass(frozen=True)
class Preflight:
    """A way to have the scheduler judge a script without submitting it."""

    command: Callable[[Path], list[str]]
    """The program and its arguments for this script; it is run inside the run folder."""

    parse: Callable[[Completed], str]
    """When the job would start, in the scheduler's words; empty if it does not say.

    Raises SchedulerError with the scheduler's own words when it would refuse the job.
    """


@dataclass(frozen=True)
class Elements:
    """How the elements of an array are told apart."""

    variable: str
    """The variable in which a job reads its index."""

    job_id: Callable[[str, int], str]
    """The job id of one element, from that of the array and its index."""

    whole: Callable[[str], str]
    """The job id of the array, from that of one element; that of another job stays as it is."""

    own_job: str
    """As ``Scheduler.OWN_JOB``, of an element."""


Ending = Literal["ok", "failed", "any"]
"""How a job must end for another that waits for it to start."""


@dataclass(frozen=True)
class After:
    """Other jobs that a job waits for."""

    ending: Ending
    job_ids: tuple[str, ...]
    folders: tuple[Path, ...] = ()  # of the runs whose jobs they are


@dataclass(frozen=True)
class Array:
    """Many runs as one scheduler job: elements 0 to ``size`` - 1, one run folder each.

    An element finds its folder by its index: the folders' names end with a dash and the index, or there are
    links whose names do.
    """

    folders: tuple[Path, ...]  # of the elements, absolute
    at_once: int | None = None  # most elements that may run at a time
    links: Path | None = None  # what the paths of the links begin with, if there are any

    @property
    def size(self) -> int:
        """Number of elements."""
        return len(self.folders)


@dataclass(frozen=True)
class Job:
    """Everything a script is rendered from."""

    run: BaseRun
    site: Site
    folder: Path  # the run folder, absolute; of an array, that of element 0, from which it is submitted
    attempt: int
    python: str  # interpreter of the ranks
    versions: Mapping[str, str] = field(default_factory=dict)  # of cuda, rocm and torch in that interpreter
    after: After | None = None
    array: Array | None = None
    exclude: tuple[str, ...] = ()  # nodes that it must not get

    def element(self, index: str) -> Path:
        """Of an array: where the element with this index, or with what stands for it, finds its folder."""
        links = self.array.links if self.array else None
        name = links.name if links else array_name(self.folder.name)
        return (links or self.folder).with_name(f"{name}-{index}")


class Scheduler(Protocol):
    """A backend module."""

    TEMPLATE: str
    """Name of the script template."""

    PREFIX: str
    """What a directive's line begins with; empty where there are no directives."""

    TIMED: bool
    """Whether the script must watch the clock itself, because the scheduler warns of no limit."""

    LIMITED: bool
    """Whether a job is ended when its walltime is over."""

    EXCLUDES: bool
    """Whether a job can name nodes that it must not get."""

    OWN_JOB: str
    """The id of the job that runs a script, as ``submitted`` gives it, as a word of bash.

    Empty where the script was started by hand.
    """

    SUBMITS_FROM_JOBS: bool
    """Whether a command in a script reaches the scheduler that runs the script, where it has one."""

    ELEMENTS: Elements | None
    """How the elements of an array are told apart; None where there are no arrays."""

    PREFLIGHT: Preflight | None
    """How the scheduler judges a script beforehand; None where it cannot."""

    QUERIES: tuple[Query, ...]
    """Asked in order until every job is accounted for."""

    NAMINGS: tuple[Naming, ...]
    """How a job is found whose id nobody has noted; none where only its script tells of it."""

    def controller(self, job_id: str) -> str | None:
        """Who is burdened by a question about a job: a word that is the same for jobs of one controller.

        None where it is nobody but this machine: then each process asks for itself.
        """

    def directives(self, job: Job) -> list[Directive]:
        """The requests of the script's head, in order.

        Raises:
            SiteError, UsageError, SchedulerError: what the site forbids or wants and the job has not.
        """

    def submit(self, script: Path) -> list[str]:
        """The command that submits ``script``; it is run inside the run folder."""

    def submitted(self, result: Completed) -> str:
        """The job id in the answer to ``submit``.

        Raises:
            NoAnswerError: it was not reached, or said neither a job id nor that it refused: the job may be
                there, and is then found by its name.
            SchedulerError: with the scheduler's own words when it refused.
        """

    def cancel(self, job_id: str) -> list[str]:
        """The command that cancels a job."""

    def cancelled(self, result: Completed) -> None:
        """Check the answer to ``cancel``.

        Raises:
            SchedulerError: with the scheduler's own words; a job that is already over is no error.
        """
