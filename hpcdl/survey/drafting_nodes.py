"""The ``nodes`` of a drafted site file: figures observed, else from data sheets, else placeholders. Pure."""

from __future__ import annotations

from typing import Any, Literal

from hpcdl.sites.detect import UNKNOWN_GPU, GpuFigures, cpu_node, figures
from hpcdl.sites.hardware import UNKNOWN_MODEL
from hpcdl.survey.node import Gpu, Node
from hpcdl.survey.seen import Machine, Shape
from hpcdl.units import GIB, MIB, ranges

DeviceKind = Literal["gpu", "cpu"]

# Where nobody said: small and slow rather than large and fast.
_UNKNOWN_MEMORY = 8 * GIB
_UNKNOWN_NIC = 1.25  # GB/s, ten-gigabit Ethernet


def node(shape: Shape, memory: int, seen: Node | None, device: DeviceKind) -> dict[str, Any]:
    """One node type.

    Args:
        shape: what the scheduler counts.
        memory: bytes that a job may use.
        seen: what a node of it said, if one was asked.
        device: what is to compute.
    """
    cores = _cores(shape, seen)
    common = {
        "cores": cores,
        "threads_per_core": max(1, shape.cpus // cores),
        **({"reserved_cores": list(range(shape.reserved))} if shape.reserved else {}),
        "host_memory": _size(memory),
        **({"local_storage": "/tmp", "local_storage_is_memory": seen.tmp_is_memory} if seen else {}),  # noqa: S108
    }
    if device == "cpu":
        return _cpu(cores - shape.reserved, memory, seen) | common
    fitting = seen if seen and (seen.cores, len(seen.gpus)) == (cores, shape.gpus) else None
    return _gpu(shape, seen) | common | (_near(fitting, shape.reserved) if fitting else {})


def doubts(machine: Machine, seen: Node | None) -> list[str]:
    """What nobody said of the nodes; all of the devices where no node was asked."""
    # How many cores are reserved is known, not which.
    reserved = ["nodes.*.reserved_cores"] if any(host.shape.reserved for host in machine.hosts) else []
    if seen is not None:
        figures_only = ["memory_bandwidth", "peak_tflops"] if seen.gpus else ["*"]
        return [*(f"nodes.*.device.{name}" for name in figures_only), "nodes.*.links", *reserved]
    counted = all(host.shape.cores is not None for host in machine.hosts)
    return [
        "nodes.*.device",
        "nodes.*.links",
        *reserved,
        *([] if counted else ["nodes.*.cores"]),
        *([] if machine.counts_memory else ["nodes.*.host_memory"]),
    ]


def _cores(shape: Shape, seen: Node | None) -> int:
    """Physical cores; a scheduler that counts CPUs may count the threads of the cores that a node names."""
    if shape.cores is not None:
        return shape.cores
    return seen.cores if seen and shape.cpus % seen.cores == 0 else shape.cpus


def _size(memory: int) -> str:
    return f"{memory // MIB}MiB"


def _cpu(cores: int, memory: int, seen: Node | None) -> dict[str, Any]:
    drafted = cpu_node(cores, memory, slots=cores).model_dump(mode="json", exclude_unset=True)
    return {
        "device": drafted["device"] | {"memory": _size(memory // cores)},
        "devices": cores,
        "links": drafted["links"] | _nics(seen),
    }


def _gpu(shape: Shape, seen: Node | None) -> dict[str, Any]:
    gpu = seen.gpus[0] if seen and seen.gpus else Gpu(_model(shape.gpu_type), _UNKNOWN_MEMORY)
    known: GpuFigures = figures(gpu.model) or UNKNOWN_GPU
    device = {
        "kind": "gcd" if "MI250X" in gpu.model else "gpu",
        "model": gpu.model if figures(gpu.model) or (seen and seen.gpus) else UNKNOWN_MODEL,
        "memory": _size(gpu.memory),
        "memory_bandwidth": known.memory_bandwidth,
        "peak_tflops": dict(known.peak_tflops),
    }
    links = {"intra_node": known.link, "host": known.host} | _nics(seen)
    return {"device": device, "devices": shape.gpus, "links": links}


def _model(gpu_type: str | None) -> str:
    """The model that a type in ``Gres`` means: ``a100`` is an A100."""
    named = f"NVIDIA {gpu_type.upper()}" if gpu_type else UNKNOWN_MODEL
    return named if figures(named) else UNKNOWN_MODEL


def _nics(seen: Node | None) -> dict[str, Any]:
    if seen is None or not seen.nics:
        return {"nics": 1, "nic_bandwidth": _UNKNOWN_NIC}
    names = [nic.name for nic in seen.nics]
    return {"nics": len(names), "nic_bandwidth": seen.nics[0].bandwidth, "nic_names": names}


def _near(seen: Node, reserved: int) -> dict[str, Any]:
    """The cores, NUMA nodes and NICs of each device, as far as the node tells them apart."""
    maps: dict[str, Any] = {}
    cores = [ranges(core for core in gpu.cores if core >= reserved) for gpu in seen.gpus]
    if all(cores):
        maps["device_cores"] = cores
    if all(gpu.numa is not None for gpu in seen.gpus):
        maps["device_numa"] = [gpu.numa for gpu in seen.gpus]
    nics = [_nearest_nic(index, seen) for index in range(len(seen.gpus))]
    return maps | ({"device_nics": nics} if None not in nics and len(seen.nics) > 1 else {})


def _nearest_nic(index: int, seen: Node) -> int | None:
    """A NIC of the device's NUMA node; several are dealt out to its devices in order."""
    numa = seen.gpus[index].numa
    nics = [number for number, nic in enumerate(seen.nics) if nic.numa == numa and numa is not None]
    devices = [number for number, gpu in enumerate(seen.gpus) if gpu.numa == numa]
    return nics[devices.index(index) * len(nics) // len(devices)] if nics else None
