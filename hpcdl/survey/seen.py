"""A machine as its scheduler describes it: what is compared with a site file, or made into one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["slurm", "pbs"]


@dataclass(frozen=True)
class Shape:
    """What nodes of one kind have in common, as their scheduler counts it."""

    cpus: int
    memory: int  # bytes
    cores: int | None = None  # physical; None where only CPUs are counted
    reserved: int = 0  # cores that jobs do not get
    gpus: int = 0
    gpu_type: str | None = None
    features: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Host:
    """One compute node."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Queue:
    """One partition or queue."""

    name: str
    hosts: frozenset[str] | None = None  # names; None where the scheduler does not tie it to nodes
    default: bool = False
    max_seconds: int | None = None  # None: no limit of its own
    min_nodes: int = 1
    max_nodes: int | None = None
    shared: bool = False  # whether a job may take a part of a node
    preemptible: bool = False
    routing: bool = False  # jobs are moved on to other queues
    open: bool = True  # whether it takes jobs


@dataclass(frozen=True)
class Machine:
    """A whole machine."""

    kind: Kind
    name: str
    version: str
    hosts: tuple[Host, ...]
    queues: tuple[Queue, ...]
    max_array: int | None = None  # largest array of jobs
    counts_memory: bool = True  # whether a job gets no more memory than the scheduler counts
    accounting: bool = True  # Slurm: whether sacct knows finished jobs

    def hosts_of(self, queue: Queue) -> list[Host]:
        """The nodes that ``queue`` may give."""
        return [host for host in self.hosts if queue.hosts is None or host.name in queue.hosts]

    def queue(self, name: str) -> Queue | None:
        """The queue of that name."""
        return next((queue for queue in self.queues if queue.name == name), None)
