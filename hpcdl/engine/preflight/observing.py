"""What a rank sees of itself and of its node, without torch: cores, NUMA nodes, network interfaces."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from hpcdl.engine.ranks import Place
from hpcdl.placement import Host, Nic, Seat
from hpcdl.units import ranges

SYSTEM = Path("/sys")

# What libraries are told to use, the narrowest first.
_INTERFACES = ("NCCL_IB_HCA", "UCX_NET_DEVICES", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def seat(place: Place, environment: Mapping[str, str] = os.environ, system: Path = SYSTEM) -> Seat:
    """This rank, as this process finds it."""
    mine = os.sched_getaffinity(0)
    return Seat(
        place.rank,
        place.local_rank,
        place.host,
        os.getpid(),
        cpus=ranges(mine),
        cpu_count=len(mine),
        numa=numa_nodes(mine, system),
        interface=next((environment[name] for name in _INTERFACES if environment.get(name)), ""),
    )


def host(place: Place, system: Path = SYSTEM) -> Host:
    """This rank's node."""
    nics = (*_fabric(system / "class" / "infiniband"), *_sockets(system / "class" / "net"))
    return Host(place.host, socket.gethostname(), os.cpu_count() or 1, nics)


def members(text: str) -> set[int]:
    """0, 1, 2 and 5 for ``0-2,5``, as the kernel writes lists of CPUs."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        with suppress(ValueError):
            found |= set(range(int(first), int(last or first) + 1))
    return found


def numa_nodes(cpus: set[int], system: Path = SYSTEM) -> tuple[int, ...]:
    """The NUMA nodes that hold any of ``cpus``."""
    nodes = (system / "devices" / "system" / "node").glob("node[0-9]*")
    near = (int(node.name[4:]) for node in nodes if members(_read(node / "cpulist")) & cpus)
    return tuple(sorted(near))


def numa_of_device(pci: str, system: Path = SYSTEM) -> int | None:
    """The NUMA node that a PCI device is near to; None where the system does not say."""
    told = _read(system / "bus" / "pci" / "devices" / f"{pci}.0" / "numa_node")
    return int(told) if told.isdigit() else None  # -1: it does not know


def _sockets(folder: Path) -> Iterator[Nic]:
    """Interfaces of the kernel that are up, without the loopback."""
    for entry in _entries(folder):
        if entry.name != "lo" and _read(entry / "operstate") == "up":
            megabits = _read(entry / "speed")
            yield Nic(entry.name, int(megabits) / 1000 if megabits.isdigit() else None)


def _fabric(folder: Path) -> Iterator[Nic]:
    """Ports of InfiniBand and RoCE adapters that are active."""
    for adapter in _entries(folder):
        for port in _entries(adapter / "ports"):
            if _read(port / "state").endswith("ACTIVE"):
                rate = _read(port / "rate").partition(" ")[0]  # 200 Gb/sec (4X HDR)
                known = rate.replace(".", "", 1).isdigit()
                yield Nic(f"{adapter.name}:{port.name}", float(rate) if known else None)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    """One line of a file of the system; empty where there is none. Some files refuse to be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
