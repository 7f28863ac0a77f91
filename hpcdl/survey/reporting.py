"""What only a compute node knows, gathered there as one JSON line: ``python -m hpcdl.survey.reporting FILE``.

It interprets nothing, so that what a node said can be kept and read again: see :mod:`hpcdl.survey.node`.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

from hpcdl import shell
from hpcdl.errors import SchedulerError
from hpcdl.telemetry import write_whole

_TIMEOUT_S = 30.0
_PROGRAMS = {
    "lscpu": ("lscpu", "-p=CPU,CORE,SOCKET,NODE"),
    "nvidia-smi": ("nvidia-smi", "--query-gpu=name,memory.total,pci.bus_id", "--format=csv,noheader,nounits"),
    "rocm-smi": ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showbus", "--json"),
}
_FILES = {"meminfo": "proc/meminfo", "mounts": "proc/mounts"}
# PCI classes of display controllers and of processing accelerators (pci.ids, classes 03 and 12).
_DEVICE_CLASSES = ("0x03", "0x12")


def report(root: Path = Path("/")) -> dict[str, Any]:
    """What this node says of itself; ``root`` is where its ``proc`` and ``sys`` are."""
    return {
        "format": 1,
        "host": socket.gethostname(),
        **{name: _said(command) for name, command in _PROGRAMS.items()},
        **{name: _text(root / path) for name, path in _FILES.items()},
        "devices": {path.name: _near(path) for path in _pci_devices(root)},
        "networks": {path.name: _network(path) for path in _entries(root / "sys/class/net")},
        "adapters": {path.name: _adapter(path) for path in _entries(root / "sys/class/infiniband")},
    }


def _said(command: tuple[str, ...]) -> str:
    """What a program printed; nothing if it is not here or failed."""
    if not shutil.which(command[0]):
        return ""
    try:
        answer = shell.run(command, timeout_s=_TIMEOUT_S)
    except SchedulerError:
        return ""
    return "" if answer.exit_code else answer.stdout


def _text(path: Path) -> str:
    """What a file of the kernel's says; nothing if it says nothing (a link that is down has no speed)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _pci_devices(root: Path) -> list[Path]:
    folder = _entries(root / "sys/bus/pci/devices")
    return [path for path in folder if _text(path / "class").startswith(_DEVICE_CLASSES)]


def _near(path: Path) -> dict[str, str]:
    return {"numa": _text(path / "numa_node"), "cpus": _text(path / "local_cpulist")}


def _network(path: Path) -> dict[str, str]:
    """An interface; ``speed`` is in Mb/s, and only what is hardware has a ``numa`` node."""
    return {
        "state": _text(path / "operstate"),
        "speed": _text(path / "speed"),
        "numa": _text(path / "device/numa_node"),
        "hardware": "yes" if (path / "device").exists() else "",
    }


def _adapter(path: Path) -> dict[str, str]:
    """An InfiniBand or RoCE adapter's first port: ``200 Gb/sec (4X HDR)``, ``4: ACTIVE``."""
    port = path / "ports/1"
    return {
        "state": _text(port / "state"),
        "rate": _text(port / "rate"),
        "numa": _text(path / "device/numa_node"),
    }


def main() -> None:
    """Write the report where the first argument says."""
    write_whole(Path(sys.argv[1]), json.dumps(report()) + "\n")


if __name__ == "__main__":
    main()
