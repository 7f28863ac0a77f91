"""A program that runs in this rank's place: started, signalled, waited for, and never left behind.

It leads a process group, so that what it started ends with it. A guard outlives this process: a launcher
that ends a rank by KILL knows nothing of the program, and would leave it on the node.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hpcdl.engine.ranks import host_name
from hpcdl.errors import EngineError

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

# A line means that all is over; an end without one, that whoever should have written it is gone.
_GUARD = 'trap "" TERM INT USR1 USR2; read -r _ || kill -s KILL -- "-$1" 2>/dev/null'


@dataclass(frozen=True)
class End:
    """How the program ended: by itself, or by a signal."""

    code: int
    signal: int | None = None


class Child:
    """One program; make it in the main thread, which takes this process's signals.

    Args:
        command: the program and its arguments.
        folder: where it is started.
        environment: all of its variables.

    Raises:
        EngineError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], folder: str, environment: Mapping[str, str]) -> None:
        self._pid: int | None = None
        self._early: list[int] = []
        self._ending = False
        signal.set_wakeup_fd(-1)  # from here on a signal is the program's, not this process's
        for number in PASSED_ON:
            signal.signal(number, self._receive)
        self._process = _start(command, folder, environment)
        self._guard = _watch(self._process.pid)
        self._pid = self._process.pid
        for early in self._early:
            self.tell(early)

    @property
    def told_to_end(self) -> bool:
        """Whether it was sent SIGTERM."""
        return self._ending

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._pid is None:
            self._early.append(number)
        else:
            self.tell(number)

    def tell(self, number: int) -> None:
        """Send a signal to the program and all it started; TERM once only, for it may be saving itself."""
        if number == signal.SIGTERM:
            if self._ending:
                return
            self._ending = True
        with suppress(ProcessLookupError):  # it is over
            os.killpg(self._process.pid, number)

    def wait(self) -> End:
        """Wait for the program's end."""
        # It stays in the table of processes: while its id is taken, its group is no one else's.
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert found is not None  # noqa: S101 - for mypy: only WNOHANG has nothing to tell
        if found.si_code == os.CLD_EXITED:
            return End(found.si_status)
        return End(128 + found.si_status, found.si_status)

    def clear(self) -> None:
        """End whatever it left behind."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._guard.communicate(b"\n")
        self._process.wait()


def _start(command: Sequence[str], folder: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, process_group=0
        )
    except OSError as error:
        raise _refusal(error, command[0], folder, environment) from None


def _refusal(error: OSError, program: str, folder: str, environment: Mapping[str, str]) -> EngineError:
    host = host_name(environment)
    if not Path(folder).is_dir():
        return EngineError(
            f"command.folder {folder} is no folder on {host}", "it must lie on a file system that nodes share"
        )
    if isinstance(error, FileNotFoundError):
        where = f"in {folder}" if "/" in program else f"on PATH: {environment.get('PATH', '')}"
        return EngineError(
            f"command: there is no program {program!r} on {host} {where}",
            "a program is looked for on the PATH of the job; load it by software.modules of the site, or "
            "give its path",
        )
    if Path(folder, program).is_dir():
        return EngineError(f"command: {program!r} is a folder on {host}", "name a program in it")
    interpreted = "a script needs a first line that names its interpreter: #!/bin/bash"
    denied = isinstance(error, PermissionError)
    return EngineError(
        f"command: {program!r} cannot be started on {host}: {error.strerror}",
        f"make it executable: chmod +x {program}" if denied else interpreted,
    )


def _watch(group: int) -> subprocess.Popen[bytes]:
    """Start the guard, in a session of its own: what ends the ranks of this node must not end it first."""
    return subprocess.Popen(
        ["bash", "-c", _GUARD, "guard", str(group)], stdin=subprocess.PIPE, start_new_session=True
    )
