"""What a machine is: the schema of a site file. One YAML file a machine, data only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from hpcdl.spec.experiment import Rendezvous
from hpcdl.spec.frozen import Frozen
from hpcdl.spec.job import DirectiveWord, Walltime
from hpcdl.units import TERA, parse_bytes, parse_walltime

SchedulerKind = Literal["slurm", "pbs", "lsf", "flux", "local"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]


def _one_line(text: str) -> str:
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError(f"{text!r} must be a single line")
    return text


def _size(text: str) -> str:
    parse_bytes(text)
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Size = Annotated[str, AfterValidator(_size), Field(description="e.g. 40GiB")]


class Device(Frozen):
    """What one rank computes on."""

    kind: Literal["gpu", "gcd", "tile", "cpu"] = Field(description="what the framework sees as one device")
    model: str = Field(description="vendor's name; also the key of the shipped efficiency profile")
    memory: Size
    memory_bandwidth: float = Field(gt=0, description="GB/s")
    peak_tflops: dict[Precision, float] = Field(
        description="dense peak, TFLOP/s per device; a precision that is not named is not supported"
    )


class Links(Frozen):
    """How fast devices reach each other: peak, one direction."""

    intra_node: float = Field(gt=0, description="GB/s per device inside a node")
    pairs: dict[str, float] = Field(
        default_factory=dict, description="GB/s between two devices where links differ, e.g. 0-1: 200"
    )
    host: float | None = Field(None, gt=0, description="GB/s between a device and host memory")
    nics: int = Field(1, ge=0, description="network interfaces a node")
    nic_bandwidth: float = Field(0.0, ge=0, description="GB/s a network interface")
    nic_names: list[str] = Field(default_factory=list)

    @property
    def inter_node(self) -> float:
        """Injection bandwidth of a whole node, GB/s; 0 where there is no network."""
        return self.nics * self.nic_bandwidth


class NodeType(Frozen):
    """One kind of node."""

    device: Device
    devices: int = Field(gt=0, description="devices a node; also the most ranks a node")
    cores: int = Field(gt=0, description="physical cores a node")
    reserved_cores: list[int] = Field(default_factory=list, description="cores the system keeps for itself")
    host_memory: Size
    host_memory_bandwidth: float | None = Field(None, gt=0, description="GB/s of a node's host memory")
    unified_memory: bool = Field(False, description="whether devices and host share one memory")
    links: Links
    device_cores: list[str] = Field(default_factory=list, description="cores near each device, e.g. 48-63")
    device_nics: list[int] = Field(default_factory=list, description="NIC near each device")
    device_numa: list[int] = Field(default_factory=list, description="NUMA node near each device")
    local_storage: str | None = Field(None, description="path of node-local storage")
    local_storage_is_memory: bool = False

    @property
    def usable_cores(self) -> int:
        """Cores a job may use."""
        return self.cores - len(self.reserved_cores)

    def nominal_flops(self, precision: Precision, ranks_per_node: int) -> float | None:
        """Peak that a rank is entitled to, FLOP/s; None where this file does not name it.

        On a CPU the ranks of a node share its cores: a site file states figures of one slot, of which the
        node has ``devices``.
        """
        peak = self.device.peak_tflops.get(precision)
        if peak is None:
            return None
        return peak * TERA * (self.devices / ranks_per_node if self.device.kind == "cpu" else 1)

    @model_validator(mode="after")
    def _maps_fit(self) -> NodeType:
        for name in ("device_cores", "device_nics", "device_numa"):
            entries = getattr(self, name)
            if entries and len(entries) != self.devices:
                raise ValueError(f"{name} has {len(entries)} entries for {self.devices} devices")
        if self.usable_cores < 1:
            raise ValueError(f"{len(self.reserved_cores)} reserved cores leave none of {self.cores}")
        return self


class WalltimeLimit(Frozen):
    """The longest walltime up to a number of nodes."""

    max_nodes: int | None = Field(None, gt=0, description="up to this many nodes; any number if not given")
    limit: Walltime


class Partition(Frozen):
    """One way into the machine: a partition, queue or QOS."""

    node: str = Field(description="which entry of nodes it gives")
    kind: Literal["partition", "qos", "queue"] = "partition"
    name: DirectiveWord | None = Field(None, description="what the scheduler calls it, if not its key")
    constraint: Line | None = Field(None, description="Slurm constraint, e.g. gpu&hbm80g")
    min_nodes: int = Field(1, gt=0)
    max_nodes: int | None = Field(None, gt=0)
    walltime: list[WalltimeLimit] = Field(
        default_factory=list, description="limits by node count, smallest first"
    )
    shared: bool = Field(False, description="whether a job may take a part of a node")
    routing: bool = Field(False, description="whether jobs are moved on to execution queues")
    preemptible: bool = False
    max_jobs: int | None = Field(None, gt=0)
    charge: float = Field(1.0, ge=0, description="cost factor of a node-hour")

    def walltime_limit(self, nodes: int) -> int | None:
        """Longest walltime for ``nodes`` nodes, in seconds; None where no limit is known."""
        for entry in self.walltime:
            if entry.max_nodes is None or nodes <= entry.max_nodes:
                return parse_walltime(entry.limit)
        return None


class Scheduler(Frozen):
    """How jobs are asked for."""

    kind: SchedulerKind
    flavour: str | None = Field(None, description="version or vendor, e.g. PBS Professional 2022")
    mandatory: list[Literal["account", "queue", "walltime"]] = Field(default_factory=list)
    account_variable: str | None = Field(None, description="environment variable the account is taken from")
    forbidden: list[str] = Field(
        default_factory=list, description="directives this machine rejects, e.g. --mem"
    )
    directives: list[Line] = Field(default_factory=list, description="directives every job carries, as text")
    gpu_request: Literal["gpus-per-node", "gres", "gres-typed", "none"] = "none"
    gpu_type: DirectiveWord | None = Field(None, description="type name in a typed request, e.g. a100")
    select: dict[str, str] = Field(default_factory=dict, description="PBS: further keys of a select chunk")
    place: str | None = Field(None, description="PBS: placement, e.g. scatter")
    poll_seconds: float = Field(10.0, gt=0, description="shortest interval between two questions")
    accounting: bool = Field(True, description="whether users may ask for finished jobs (sacct, qstat -x)")


class Launch(Frozen):
    """How the ranks of a job are started."""

    launcher: Literal["fork", "srun", "mpiexec-pals", "mpiexec-hydra", "mpiexec-openmpi"]
    arguments: list[Line] = Field(default_factory=list, description="further arguments of the launcher")
    mpi: str | None = Field(
        None, description="value of srun --mpi for the transports mpi and mixed, e.g. pmi2"
    )
    cpu_bind: Line | None = Field(None, description="binding in the launcher's own words, e.g. cores")
    gpu_visibility: Literal["all", "one_per_task"] = "all"
    gpu_bind: Line | None = Field(None, description="srun --gpu-bind, e.g. none or closest")
    device_order: list[int] = Field(
        default_factory=list, description="device of each local rank, if not 0, 1, 2, …"
    )


class Variable(Frozen):
    """One environment variable of the engine on this machine."""

    name: str = Field(pattern=r"[A-Za-z_][A-Za-z0-9_]*")
    value: str
    when: Literal["always", "nodes > 1", "nodes == 1"] = "always"
    why: str | None = None
    source: str | None = None


class Network(Frozen):
    """The fabric between nodes."""

    topology: str | None = None
    group_nodes: int | None = Field(None, gt=0, description="nodes a cell, rack or dragonfly group")
    oversubscription: float = Field(1.0, gt=0)
    latency_us: float | None = Field(None, gt=0)


class Software(Frozen):
    """What a job must load before Python runs."""

    modules: list[Line] = Field(default_factory=list)
    setup: list[Line] = Field(
        default_factory=list, description="lines of shell, run as they are, before the launch"
    )
    python: Line | None = Field(None, description="interpreter of the ranks, if not the one hpcdl runs in")
    internet: Literal["none", "proxy", "full", "unknown"] = "unknown"
    container: str | None = None


class Policy(Frozen):
    """Habits of the machine that a run must know."""

    requeue: bool = Field(False, description="whether the scheduler may start a job again by itself")
    signal: str | None = Field(None, description="signal sent before the limit or at preemption")
    node_exclusion: bool = Field(True, description="whether a job may name nodes to avoid")


class Identity(Frozen):
    """How the machine is recognised and who says what stands in its file."""

    facility: str | None = None
    docs: str | None = None
    status: Literal["active", "retired", "draft"] = "active"
    aliases: list[str] = Field(default_factory=list)
    hostnames: list[str] = Field(default_factory=list, description="regular expressions of login node names")
    probe: dict[str, str] = Field(
        default_factory=dict, description="environment variables that tell the machine"
    )
    last_verified: str | None = Field(None, pattern=r"\d{4}-\d{2}(-\d{2})?")
    sources: dict[str, str] = Field(
        default_factory=dict, description="field → where its value was read, and when"
    )
    unverified: list[str] = Field(default_factory=list, description="fields recalled or derived, not read")


class Site(Frozen):
    """One machine."""

    name: str = Field(pattern=r"[a-z0-9][a-z0-9-]*")
    description: str = ""
    identity: Identity = Identity()
    scheduler: Scheduler
    launch: Launch
    partitions: dict[str, Partition]
    default_partition: str
    nodes: dict[str, NodeType]
    network: Network = Network()
    rendezvous: Rendezvous = Rendezvous()
    environment: list[Variable] = Field(default_factory=list)
    software: Software = Software()
    policy: Policy = Policy()

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
        """The partition that ``queue`` names, or the default one, with its key.

        Raises:
            KeyError: there is no such partition.
        """
        key = queue or self.default_partition
        return key, self.partitions[key]

    def node(self, queue: str | None) -> NodeType:
        """The kind of node that ``queue`` gives."""
        return self.nodes[self.partition(queue)[1].node]
