"""What a node is made of: devices, links, cores and memory."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from hpcdl.spec.frozen import Frozen
from hpcdl.units import TERA, parse_bytes

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Cores = tuple[int, ...]

_CORE_LIST = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")
_MAKERS = {"gpu": "nvidia", "gcd": "amd", "tile": "intel"}
"""Who makes a kind of device, where the model does not begin with the name: nvidia-smi prints Tesla V100."""


def _size(text: str) -> str:
    parse_bytes(text)
    return text


Size = Annotated[str, AfterValidator(_size), Field(description="e.g. 40GiB")]


def parse_cores(text: str) -> Cores:
    """The cores in a list such as ``1-8,52``, as they stand in it.

    Raises:
        ValueError: it is no such list, or names a core twice.
    """
    if not _CORE_LIST.fullmatch(text):
        raise ValueError(f"{text!r} is no list of cores; write for example 48-63 or 1-8,52")
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    cores = tuple(core for part in ends for core in range(part[0], part[-1] + 1))
    if not cores or len(set(cores)) < len(cores) or any(part[0] > part[-1] for part in ends):
        raise ValueError(f"{text!r} must name each core once, the smaller end of a range first")
    return cores


def _refuse_unusable(named: list[Cores], cores: int, reserved: list[int]) -> None:
    for device, core in ((device, core) for device, own in enumerate(named) for core in own):
        if core in reserved:
            raise ValueError(f"device {device} names core {core}, which is one of reserved_cores")
        if core >= cores:
            raise ValueError(f"device {device} names core {core}, but the cores are 0 to {cores - 1}")


def _refuse_partly_shared(named: list[Cores]) -> None:
    for (one, mine), (other, theirs) in combinations(enumerate(named), 2):
        common = set(mine) & set(theirs)
        if common and mine != theirs:
            raise ValueError(
                f"devices {one} and {other} share core {min(common)}, but not all their cores; give both the "
                "same list, of which each of their ranks then gets a part, or none in common"
            )


def _core_list(text: str) -> str:
    parse_cores(text)
    return text


NicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]+$")]
CoreList = Annotated[str, AfterValidator(_core_list)]


class Device(Frozen):
    """What one rank computes on."""

    kind: Literal["gpu", "gcd", "tile", "cpu"] = Field(description="what the framework sees as one device")
    model: str = Field(description="vendor's name; also the key of the shipped efficiency profile")
    memory: Size
    memory_bandwidth: float = Field(gt=0, description="GB/s")
    peak_tflops: dict[Precision, float] = Field(
        description="dense peak, TFLOP/s per device; a precision that is not named is not supported"
    )

    @property
    def vendor(self) -> str:
        """Who makes the device, as conditions name it; none for CPUs."""
        first, usual = self.model.partition(" ")[0].lower(), _MAKERS.get(self.kind, "none")
        return first if usual != "none" and first in _MAKERS.values() else usual


class Links(Frozen):
    """How fast devices reach each other: peak, one direction."""

    intra_node: float = Field(gt=0, description="GB/s per device inside a node")
    pairs: dict[str, float] = Field(
        default_factory=dict, description="GB/s between two devices where links differ, e.g. 0-1: 200"
    )
    host: float | None = Field(None, gt=0, description="GB/s between a device and host memory")
    nics: int = Field(1, ge=0, description="network interfaces a node")
    nic_bandwidth: float = Field(0.0, ge=0, description="GB/s a network interface")
    nic_names: list[NicName] = Field(default_factory=list, description="of each NIC, e.g. mlx5_0 or hsn0")

    @property
    def inter_node(self) -> float:
        """Injection bandwidth of a whole node, GB/s; 0 where there is no network."""
        return self.nics * self.nic_bandwidth


class NodeType(Frozen):
    """One kind of node."""

    device: Device
    devices: int = Field(gt=0, le=4096, description="devices a node; also the most ranks a node")
    cores: int = Field(gt=0, le=65536, description="physical cores a node")
    threads_per_core: int = Field(1, gt=0, description="CPUs that the scheduler counts a core")
    reserved_cores: list[int] = Field(default_factory=list, description="cores the system keeps for itself")
    host_memory: Size
    host_memory_bandwidth: float | None = Field(None, gt=0, description="GB/s of a node's host memory")
    unified_memory: bool = Field(False, description="whether devices and host share one memory")
    links: Links
    device_cores: list[CoreList] = Field(
        default_factory=list, description="cores near each device, e.g. 48-63 or 1-8,52; none of the reserved"
    )
    device_nics: list[int] = Field(
        default_factory=list, description="NIC near each device, as an index into links.nic_names"
    )
    device_numa: list[int] = Field(default_factory=list, description="NUMA node near each device")
    local_storage: str | None = Field(None, description="path of node-local storage")
    local_storage_is_memory: bool = Field(False, description="whether what lies there takes host memory")

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

    @field_validator("device_cores")
    @classmethod
    def _cores_are_usable(cls, lists: list[str], known: ValidationInfo) -> list[str]:
        named = [parse_cores(text) for text in lists]
        if "cores" in known.data:
            _refuse_unusable(named, known.data["cores"], known.data.get("reserved_cores", []))
        _refuse_partly_shared(named)
        return lists

    @field_validator("device_nics")
    @classmethod
    def _nics_exist(cls, nics: list[int], known: ValidationInfo) -> list[int]:
        count = known.data["links"].nics if "links" in known.data else max(nics, default=0) + 1
        for device, nic in enumerate(nics):
            if not 0 <= nic < count:
                raise ValueError(
                    f"device {device} names NIC {nic}, but links.nics is {count}: 0 to {count - 1}"
                )
        return nics

    @model_validator(mode="after")
    def _maps_fit(self) -> NodeType:
        for name in ("device_cores", "device_nics", "device_numa"):
            entries = getattr(self, name)
            if entries and len(entries) != self.devices:
                raise ValueError(f"{name} has {len(entries)} entries for {self.devices} devices")
        if self.usable_cores < 1:
            raise ValueError(f"{len(self.reserved_cores)} reserved cores leave none of {self.cores}")
        return self
