"""The ways into a machine: its scheduler, its partitions and their limits."""

from __future__ import annotations

import shlex
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from hpcdl.sites.node import Size
from hpcdl.spec.frozen import Frozen
from hpcdl.spec.job import DirectiveWord, Walltime
from hpcdl.units import parse_walltime

SchedulerKind = Literal["slurm", "pbs", "lsf", "flux", "local"]


def _one_line(text: str) -> str:
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError(f"{text!r} must be a single line")
    return text


def _words(value: str) -> str:
    try:
        shlex.split(value)
    except ValueError as error:
        raise ValueError(f"{value!r} cannot be taken apart as a shell would: {error}") from None
    return value


Line = Annotated[str, AfterValidator(_one_line)]
Arguments = Annotated[Line, AfterValidator(_words)]


class WalltimeLimit(Frozen):
    """The longest walltime up to a number of nodes."""

    max_nodes: int | None = Field(None, gt=0, description="up to this many nodes; any number if not given")
    limit: Walltime

    @property
    def seconds(self) -> int:
        """The limit as a number."""
        return parse_walltime(self.limit)


class Partition(Frozen):
    """One way into the machine: a partition, queue or QOS."""

    node: str = Field(description="which entry of nodes it gives")
    kind: Literal["partition", "qos", "queue", "implicit"] = Field(
        "partition", description="what the scheduler calls it; implicit: it chooses by what a job asks for"
    )
    name: DirectiveWord | None = Field(None, description="what the scheduler calls it, if not its key")
    constraint: Line | None = Field(None, description="Slurm constraint, e.g. gpu&hbm80g")
    gpu_type: DirectiveWord | None = Field(
        None, description="type name in the request for devices, if not scheduler.gpu_type"
    )
    min_nodes: int = Field(1, gt=0, description="fewest nodes of a job")
    max_nodes: int | None = Field(None, gt=0, description="most nodes of a job; any number if not given")
    walltime: list[WalltimeLimit] = Field(
        default_factory=list, description="limits by node count, smallest first"
    )
    min_walltime: Walltime | None = Field(None, description="the shortest that a job may ask for")
    shared: bool = Field(False, description="whether a job may take a part of a node")
    routing: bool = Field(False, description="whether jobs are moved on to execution queues")
    preemptible: bool = Field(False, description="whether the scheduler may take a job's nodes away")
    max_jobs: int | None = Field(None, gt=0, description="most jobs of a user at once, running or not")
    charge: float = Field(1.0, ge=0, description="cost factor of a node-hour")
    directives: list[Line] = Field(
        default_factory=list, description="directives every job here carries, as text"
    )

    def walltime_limit(self, nodes: int) -> WalltimeLimit | None:
        """Which limit holds for ``nodes`` nodes; None where none is known."""
        fitting = (entry for entry in self.walltime if entry.max_nodes is None or nodes <= entry.max_nodes)
        return next(fitting, None)


class Scheduler(Frozen):
    """How jobs are asked for."""

    kind: SchedulerKind = Field(description="whose directives and commands are used")
    flavour: str | None = Field(None, description="version or vendor, e.g. PBS Professional 2022")
    mandatory: list[Literal["account", "queue", "walltime"]] = Field(
        default_factory=list, description="without which no job is taken"
    )
    account_variable: str | None = Field(None, description="environment variable the account is taken from")
    forbidden: list[str] = Field(
        default_factory=list,
        description="directives this machine rejects, e.g. --mem; of PBS also keys of a chunk, e.g. ncpus",
    )
    directives: list[Line] = Field(default_factory=list, description="directives every job carries, as text")
    gpu_request: Literal["gpus-per-node", "gpus", "gpus-per-task", "gres", "none"] = Field(
        "none", description="how devices are asked for; none: whole nodes come with theirs"
    )
    gpu_type: DirectiveWord | None = Field(
        None, description="type name in the request, e.g. a100: gres=gpu:a100:4"
    )
    memory_per_device: Size | None = Field(None, description="host memory asked for with each device")
    network: DirectiveWord | None = Field(None, description="Slurm --network, e.g. disable_rdzv_get")
    cluster: DirectiveWord | None = Field(
        None, description="Slurm --clusters, where one controller of several is meant"
    )
    preflight: bool = Field(True, description="whether a submission asks sbatch --test-only first")
    select: dict[str, str] = Field(default_factory=dict, description="PBS: further keys of a select chunk")
    place: str | None = Field(None, description="PBS: placement, e.g. scatter")
    max_array: int = Field(
        1000,
        gt=1,
        description="most runs of one submission; the default is within the defaults of Slurm (MaxArraySize "
        "1001), LSF (MAX_JOB_ARRAY_SIZE 1000) and PBS (max_array_size 10000)",
    )
    poll_seconds: float = Field(10.0, gt=0, description="shortest interval between two questions")
    accounting: bool = Field(True, description="Slurm: whether users may ask for finished jobs (sacct)")
