"""What a compute node said of itself, understood. Pure.

CPUs are numbered as Linux does; a core goes by the smallest number among its CPUs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hpcdl.errors import SchedulerError
from hpcdl.sites.node import Cores, parse_cores
from hpcdl.units import KIB, MIB

_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class Gpu:
    """One device."""

    model: str
    memory: int  # bytes
    numa: int | None = None
    cores: Cores = ()  # near it; none where the cores of the node are not its first CPUs


@dataclass(frozen=True)
class Nic:
    """One way out of the node."""

    name: str
    bandwidth: float  # GB/s
    numa: int | None = None


@dataclass(frozen=True)
class Node:
    """One compute node."""

    host: str
    cores: int
    threads_per_core: int
    numa_nodes: int
    memory: int  # bytes
    gpus: tuple[Gpu, ...] = ()
    nics: tuple[Nic, ...] = ()
    interface: str | None = None  # of the fastest network that is up
    tmp_is_memory: bool = False


def parse(line: str) -> Node:
    """The node that one line of :mod:`hpcdl.survey.reporting` describes.

    Raises:
        SchedulerError: it is no such line.
    """
    try:
        said = json.loads(line)
        return _node(said)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SchedulerError(
            f"a node's report cannot be read ({type(error).__name__}: {error}): {line.strip()[:80]!r}",
            "see the job's log; a draft without --job needs no report",
        ) from None


def _node(said: Mapping[str, Any]) -> Node:
    siblings = _siblings(said["lscpu"])
    networks = _networks(said["networks"])
    return Node(
        host=said["host"],
        cores=len(siblings),
        threads_per_core=max(len(cpus) for cpus in siblings.values()),
        numa_nodes=len({line.split(",")[3] for line in _rows(said["lscpu"])}),
        memory=_memory(said["meminfo"]),
        gpus=(*_nvidia(said, siblings), *_amd(said, siblings)),
        nics=_fastest([*_adapters(said["adapters"])] or networks),
        interface=max(networks, key=lambda nic: nic.bandwidth).name if networks else None,
        tmp_is_memory=_file_system("/tmp", said["mounts"]) in _MEMORY_FILE_SYSTEMS,  # noqa: S108 - its kind
    )


def _rows(lscpu: str) -> list[str]:
    return [line for line in lscpu.splitlines() if line and not line.startswith("#")]


def _siblings(lscpu: str) -> dict[int, list[int]]:
    """The CPUs of each core."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in _rows(lscpu):
        cpu, core, socket, _ = row.split(",")
        groups[socket, core].append(int(cpu))
    return {min(cpus): cpus for cpus in groups.values()}


def _memory(meminfo: str) -> int:
    totals = [line for line in meminfo.splitlines() if line.startswith("MemTotal:")]
    return int(totals[0].split()[1]) * KIB


def _nvidia(said: Mapping[str, Any], siblings: Mapping[int, list[int]]) -> Iterable[Gpu]:
    """Lines ``NVIDIA A100-SXM4-40GB, 40960, 00000000:07:00.0``; the kernel's domain has four digits."""
    for line in said["nvidia-smi"].splitlines():
        model, memory, bus = (word.strip() for word in line.rsplit(",", 2))
        yield Gpu(model, int(memory) * MIB, *_near(said, bus.lower()[-12:], siblings))


def _amd(said: Mapping[str, Any], siblings: Mapping[int, list[int]]) -> Iterable[Gpu]:
    """``{"card0": {"Card Series": …, "VRAM Total Memory (B)": …, "PCI Bus": …}}``, in any case."""
    cards = json.loads(said["rocm-smi"] or "{}")
    for card in (card for key, card in cards.items() if key.startswith("card")):
        about = {key.lower(): value for key, value in card.items()}
        near = _near(said, about.get("pci bus", "").lower(), siblings)
        yield Gpu(
            f"AMD {about['card series'].removeprefix('AMD ')}", int(about["vram total memory (b)"]), *near
        )


def _near(said: Mapping[str, Any], bus: str, siblings: Mapping[int, list[int]]) -> tuple[int | None, Cores]:
    device = said["devices"].get(bus, {"numa": "", "cpus": ""})
    # Where threads of a core are numbered side by side, a CPU's number is no number of a core.
    counted = set(siblings) == set(range(len(siblings)))
    cpus = parse_cores(device["cpus"]) if device["cpus"] and counted else ()
    return _numa(device["numa"]), tuple(cpu for cpu in cpus if cpu in siblings)


def _numa(text: str) -> int | None:
    """The kernel says -1 where there is no telling."""
    return int(text) if text.isdecimal() else None


def _adapters(adapters: Mapping[str, Mapping[str, str]]) -> Iterable[Nic]:
    for name, adapter in adapters.items():
        rate = adapter["rate"].split()
        if rate and "ACTIVE" in adapter["state"]:
            yield Nic(name, float(rate[0]) / 8, _numa(adapter["numa"]))


def _networks(networks: Mapping[str, Mapping[str, str]]) -> list[Nic]:
    return [
        Nic(name, int(network["speed"]) / 8000, _numa(network["numa"]))
        for name, network in networks.items()
        if network["hardware"] and network["state"] == "up" and network["speed"].isdecimal()
    ]


def _fastest(nics: Iterable[Nic]) -> tuple[Nic, ...]:
    """Those of the highest rate: what is slower is for administration or storage."""
    found = list(nics)
    best = max((nic.bandwidth for nic in found), default=0.0)
    return tuple(nic for nic in found if nic.bandwidth == best)


def _file_system(path: str, mounts: str) -> str:
    """The kind of file system that ``path`` lies on: its own mount, else the root's."""
    kinds = {words[1]: words[2] for words in map(str.split, mounts.splitlines()) if len(words) > 2}
    return kinds.get(path, kinds.get("/", ""))
