"""Who claims an attempt: a process, known again by whoever looks from the same host."""

from __future__ import annotations

import os
import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

# PID-START@HOST, as in a job id of the local scheduler: a process id alone is given to another process
# sooner or later. What follows tells two claims of one process apart.
_TEXT = re.compile(r"process (\d+)-(\d+)@(\S+) \w+")


@dataclass(frozen=True)
class Claimant:
    """A process of a host."""

    process: int
    started: int  # clock ticks since the host was booted
    host: str

    @property
    def mark(self) -> str:
        """What a claim of this process says, another each time."""
        return f"process {self.process}-{self.started}@{self.host} {secrets.token_hex(4)}"

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    @property
    def is_alive(self) -> bool | None:
        """Whether it still runs; None where that cannot be seen from here."""
        if self.host != socket.gethostname() or not Path("/proc/self/stat").exists():
            return None
        return _started(self.process) == self.started


def this_process() -> Claimant:
    """The one that asks."""
    return Claimant(os.getpid(), _started(os.getpid()) or 0, socket.gethostname())


def claimant(mark: str) -> Claimant | None:
    """Who made a claim; None where it was no process of hpcdl's."""
    match = _TEXT.fullmatch(mark)
    return Claimant(int(match[1]), int(match[2]), match[3]) if match else None


def _started(process: int) -> int | None:
    """When a process began; None if there is none, or only what its parent has not yet taken note of."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # "PID (NAME) STATE …": NAME may hold anything, so fields are counted from the last parenthesis (proc(5)).
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])
