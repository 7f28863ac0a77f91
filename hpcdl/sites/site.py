"""What a machine is: the schema of a site file. One YAML file a machine, data only."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr, model_validator

from hpcdl.sites.access import Arguments, Line, Partition, Scheduler
from hpcdl.sites.conditions import Condition
from hpcdl.sites.node import NodeType
from hpcdl.spec.experiment import Rendezvous
from hpcdl.spec.frozen import Frozen
from hpcdl.spec.job import VariableName, VariableValue
from hpcdl.spec.load import Document

NAME = r"^[a-z0-9][a-z0-9-]*$"


class Launch(Frozen):
    """How the ranks of a job are started."""

    launcher: Literal[
        "fork", "srun", "mpiexec-pals", "mpiexec-hydra", "mpiexec-openmpi", "pbsdsh", "flux-run", "jsrun"
    ] = Field(description="what starts the ranks")
    arguments: list[Arguments] = Field(default_factory=list, description="further arguments of the launcher")
    mpi: str | None = Field(
        None, description="value of srun --mpi for the transports mpi and mixed, e.g. pmi2"
    )
    cpu_bind: Line | None = Field(
        None,
        description="near-device: each rank to the cores of its device; else in the launcher's own words",
    )
    nic_bind: Literal["none", "cray-mpich", "ucx"] = Field(
        "none", description="how a rank is told the NIC near its device"
    )
    gpu_visibility: Literal["all", "one_per_task"] = Field(
        "all", description="whether a rank sees every device of its node or only its own"
    )
    gpu_bind: Line | None = Field(None, description="srun --gpu-bind, e.g. none or closest")
    device_order: list[int] = Field(
        default_factory=list, description="device of each local rank, if not 0, 1, 2, …"
    )


class Variable(Frozen):
    """One environment variable of the engine on this machine."""

    name: VariableName = Field(description="of the variable")
    value: VariableValue = Field(description="as the ranks get it; nothing in it is expanded")
    when: Condition = Field("always", description="e.g. nodes > 1 and vendor == amd and rocm >= 7.1")
    why: str | None = Field(None, description="what goes wrong without it")
    source: str | None = Field(None, description="where it was read, and when")


class Network(Frozen):
    """The fabric between nodes."""

    topology: str | None = Field(None, description="e.g. dragonfly or fat tree")
    group_nodes: int | None = Field(None, gt=0, description="nodes a cell, rack or dragonfly group")
    oversubscription: float = Field(1.0, gt=0, description="bandwidth into a group, of that out of it")


class Software(Frozen):
    """What a job must load before Python runs."""

    modules: list[Line] = Field(default_factory=list, description="what `module load` is called with")
    setup: list[Line] = Field(
        default_factory=list, description="lines of shell, run as they are, before the launch"
    )
    python: Line | None = Field(None, description="interpreter of the ranks, if not the one hpcdl runs in")
    internet: Literal["none", "proxy", "full", "unknown"] = Field(
        "unknown", description="what compute nodes reach"
    )
    container: str | None = Field(
        None,
        description="image in which python starts the ranks, if it does; what lies here says nothing of it",
    )


class Policy(Frozen):
    """Habits of the machine that a run must know."""

    requeue: bool = Field(False, description="whether the scheduler may start a job again by itself")
    signal: str | None = Field(None, description="signal sent before the limit or at preemption")
    submit_from_jobs: bool = Field(
        True,
        description="whether the scheduler takes jobs from compute nodes; else whoever watches a run goes on",
    )
    node_exclusion: bool = Field(True, description="whether a job may name nodes to avoid")


class Identity(Frozen):
    """How the machine is recognised and who says what stands in its file."""

    facility: str | None = Field(None, description="who runs the machine")
    docs: str | None = Field(None, description="address of its user guide")
    status: Literal["active", "retired", "draft"] = Field(
        "active", description="draft: nobody has run hpcdl there yet"
    )
    aliases: list[str] = Field(default_factory=list, description="further names that --site takes")
    hostnames: list[str] = Field(default_factory=list, description="regular expressions of login node names")
    probe: dict[str, str] = Field(
        default_factory=dict, description="environment variables that tell the machine"
    )
    last_verified: str | None = Field(
        None,
        pattern=r"^\d{4}-\d{2}(-\d{2})?$",
        description="when somebody last held the file against the machine",
    )
    sources: dict[str, str] = Field(
        default_factory=dict, description="field → where its value was read, and when"
    )
    unverified: list[str] = Field(default_factory=list, description="fields recalled or derived, not read")


class Site(Frozen):
    """One machine."""

    name: str = Field(pattern=NAME, description="as --site takes it; also the file's name")
    description: str = Field("", description="one line about the machine")
    extends: str | list[str] | None = Field(
        None, description="sites or parts of one whose values this file begins with, later ones over earlier"
    )
    identity: Identity = Identity()
    scheduler: Scheduler
    launch: Launch
    partitions: dict[str, Partition] = Field(description="ways into the machine, by the name users give")
    default_partition: str = Field(description="where a job goes that names none")
    nodes: dict[str, NodeType] = Field(description="kinds of nodes, by a name that partitions refer to")
    network: Network = Network()
    rendezvous: Rendezvous = Rendezvous()
    environment: list[Variable] = Field(default_factory=list, description="variables that every rank sees")
    software: Software = Software()
    policy: Policy = Policy()

    _places: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)
    _files: tuple[str, ...] = PrivateAttr(())

    def place(self, *keys: str | int) -> str:
        """Where a value stands, ``file:line:column``; of one that is left out, what stands around it."""
        while keys and keys not in self._places:
            keys = keys[:-1]
        return self._places.get(keys, f"site {self.name}")

    def distance(self, *keys: str | int) -> int:
        """Which file a value stands in: 0 is the one that was asked for, 1 the nearest that it extends."""
        file = self.place(*keys).rsplit(":", 2)[0]
        return self._files.index(file) if file in self._files else 0

    def read_at(self, document: Document) -> Site:
        """This site, knowing where its values were read."""
        self._places, self._files = document.places, (document.source, *document.bases)
        return self

    @property
    def file(self) -> str:
        """The path of the file it was read from; empty where there is none, or it is not known."""
        return str(Path(self._files[0]).absolute()) if self._files else ""

    def read_from(self, file: str) -> Site:
        """This site, of whose file no more than its path is known, or not even that."""
        self._files = (file,) if file else ()
        return self

    @model_validator(mode="after")
    def _references_exist(self) -> Site:
        if self.default_partition not in self.partitions:
            raise ValueError(
                f"default_partition {self.default_partition!r} is not among {', '.join(self.partitions)}"
            )
        for key, partition in self.partitions.items():
            if partition.node not in self.nodes:
                raise ValueError(
                    f"partition {key} names node type {partition.node!r}; known: {', '.join(self.nodes)}"
                )
        return self

    def partition(self, queue: str | None) -> tuple[str, Partition]:
        """The partition that ``queue`` names by its key or in the scheduler's own words, with its key.

        Raises:
            KeyError: there is no such partition.
        """
        key = queue or self.default_partition
        if key not in self.partitions:
            key = next((own for own, each in self.partitions.items() if each.name == key), key)
        return key, self.partitions[key]

    def gpu_type(self, queue: str | None) -> str | None:
        """What the scheduler calls the devices that ``queue`` gives, where it must be told."""
        return self.partition(queue)[1].gpu_type or self.scheduler.gpu_type

    def node(self, queue: str | None) -> NodeType:
        """The kind of node that ``queue`` gives."""
        return self.nodes[self.partition(queue)[1].node]
