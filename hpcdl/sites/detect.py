"""The machine one is on, described as a site: enough to plan and run an experiment without a scheduler."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from hpcdl.errors import SchedulerError
from hpcdl.shell import run
from hpcdl.sites.access import Partition, Scheduler
from hpcdl.sites.node import Device, Links, NodeType
from hpcdl.sites.site import Identity, Launch, Site
from hpcdl.spec.experiment import Rendezvous
from hpcdl.units import MIB

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")

# Slots for ranks on a machine without GPUs: a laptop can try 4 or 8 ranks, which then take turns.
_LEAST_CPU_SLOTS = 8

# One core in single precision: two AVX2 FMA units × 8 lanes × 2 FLOP × 2 GHz, which nearly every x86-64
# core of the last ten years reaches. bf16 is given no more: only AMX and AVX512-BF16 are faster in it.
_CPU_CORE_TFLOPS = 0.064
_CPU_CORE_BANDWIDTH = 10.0  # GB/s; two DDR4 channels over four cores
_LOOPBACK_BANDWIDTH = 2.0  # GB/s between two processes over 127.0.0.1


@dataclass(frozen=True)
class Gpu:
    """One line of nvidia-smi."""

    name: str
    memory_mib: int


@dataclass(frozen=True)
class GpuFigures:
    """Dense peaks in TFLOP/s, GB/s of memory, GB/s to the other devices of its node and to its host."""

    peak_tflops: dict[str, float]
    memory_bandwidth: float
    link: float
    host: float


# Vendor data sheets, dense figures; the first name contained in nvidia-smi's is taken. To the host a GH200
# has NVLink-C2C, the others PCI Express 5, 4 and 3 with 16 lanes.
_GPUS = {
    "GH200": GpuFigures({"fp32": 67.0, "tf32": 494.0, "bf16": 989.0, "fp16": 989.0}, 4000.0, 450.0, 450.0),
    "H200": GpuFigures({"fp32": 67.0, "tf32": 494.0, "bf16": 989.0, "fp16": 989.0}, 4800.0, 450.0, 63.0),
    "H100": GpuFigures({"fp32": 67.0, "tf32": 494.0, "bf16": 989.0, "fp16": 989.0}, 3350.0, 450.0, 63.0),
    "A100": GpuFigures({"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0}, 1555.0, 300.0, 31.5),
    "V100": GpuFigures({"fp32": 15.7, "fp16": 125.0}, 900.0, 150.0, 15.75),
}
# A GPU that is not listed is given a T4's fp32 and PCIe 3: too slow rather than too fast.
UNKNOWN_GPU = GpuFigures({"fp32": 8.1, "bf16": 8.1, "fp16": 8.1}, 300.0, 12.0, 15.75)


def figures(model: str) -> GpuFigures | None:
    """The figures of a GPU that is listed; None of any other."""
    return next((value for key, value in _GPUS.items() if key in model), None)


def parse_gpus(text: str) -> list[Gpu]:
    """The GPUs in ``nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits``.

    Lines of any other form (a driver's complaint, ``[N/A]`` for memory) are passed over.
    """
    gpus = []
    for line in text.splitlines():
        name, separator, memory = line.rpartition(",")
        if separator and memory.strip().isdecimal():
            gpus.append(Gpu(name.strip(), int(memory)))
    return gpus


def local_site() -> Site:
    """The machine this runs on, one node, ranks started by fork."""
    cores = len(os.sched_getaffinity(0))
    return describe(cores, _memory_bytes(), _query_gpus())


def describe(cores: int, memory_bytes: int, gpus: list[Gpu]) -> Site:
    """A machine of ``cores`` usable cores, ``memory_bytes`` of memory and ``gpus`` as the site ``local``.

    Its queues are ``cpu`` and, where there are GPUs, ``gpu``, which is then the default.
    """
    nodes = {"cpu": cpu_node(cores, memory_bytes, max(cores, _LEAST_CPU_SLOTS))}
    if gpus:
        nodes["gpu"] = _gpu_node(cores, memory_bytes, gpus)
    return Site(
        name="local",
        description="this machine, without a scheduler",
        identity=Identity(
            sources={"nodes": "detected: affinity mask, physical memory, nvidia-smi"},
            unverified=["nodes.*.device.peak_tflops", "nodes.*.device.memory_bandwidth", "nodes.*.links"],
        ),
        scheduler=Scheduler(kind="local", poll_seconds=0.2),
        launch=Launch(launcher="fork"),
        partitions={name: Partition(node=name, max_nodes=1, shared=True) for name in nodes},
        default_partition="gpu" if gpus else "cpu",
        nodes=nodes,
        rendezvous=Rendezvous(address="loopback"),
    )


def _memory_bytes() -> int:
    """Physical memory, or less where a container is given less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdecimal() else physical


def _query_gpus() -> list[Gpu]:
    if not shutil.which(_QUERY[0]):
        return []
    try:
        answer = run(_QUERY, timeout_s=20.0)
    except SchedulerError:
        return []
    return parse_gpus(answer.stdout) if answer.exit_code == 0 else []


def cpu_node(cores: int, memory_bytes: int, slots: int) -> NodeType:
    """A node whose cores compute; ``slots`` ranks share them."""
    peak = _CPU_CORE_TFLOPS * cores / slots  # peaks are per slot, so that slots × peak is the node's
    device = Device(
        kind="cpu",
        model="CPU",
        memory=str(memory_bytes // slots),
        memory_bandwidth=_CPU_CORE_BANDWIDTH * cores / slots,
        peak_tflops={"fp32": peak, "bf16": peak},
    )
    links = Links(intra_node=_LOOPBACK_BANDWIDTH)
    return NodeType(device=device, devices=slots, cores=cores, host_memory=str(memory_bytes), links=links)


def _gpu_node(cores: int, memory_bytes: int, gpus: list[Gpu]) -> NodeType:
    name = gpus[0].name
    known = figures(name) or UNKNOWN_GPU
    device = Device(
        kind="gpu",
        model=name,
        memory=str(min(gpu.memory_mib for gpu in gpus) * MIB),
        memory_bandwidth=known.memory_bandwidth,
        peak_tflops=known.peak_tflops,
    )
    links = Links(intra_node=known.link, host=known.host)
    return NodeType(device=device, devices=len(gpus), cores=cores, host_memory=str(memory_bytes), links=links)
