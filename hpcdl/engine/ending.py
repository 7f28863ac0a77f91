"""How a rank ends: one record, written before anybody can notice that the rank is gone.

The record of the rank that fails first must carry the earliest time, because the others fail in its
wake. So it is written where the failure is caught, while all connections still stand. SIGTERM is
taken by a thread that waits for nothing else: the main thread may sit in a collective for ever.

That thread reads a pipe which the interpreter's C handler writes to, in whatever thread the kernel
delivers the signal. Blocking SIGTERM and waiting with ``sigwait`` would need every thread to block
it, and those that an MPI library started before this module was imported do not.

A process leaves by ``os._exit``, because destructors of communication libraries at interpreter exit can
hang or crash after the work is long done. Only a good end of a run over MPI under MPICH's mpiexec goes the
long way: MPICH tells mpiexec in an exit handler of the C library that the rank has left MPI, and mpiexec
kills the others, some of them still about to write, when one is gone without that word. srun does not.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from hpcdl.engine.log import quote, say
from hpcdl.engine.ranks import host_name, started_by_mpich
from hpcdl.errors import HpcdlError, PeerLostError
from hpcdl.telemetry import Blamed, ExitFile, ExitRecord

_REASON_LENGTH = 300
_LONGEST_EXIT_SECONDS = 30  # then the stacks of all threads go to the log
_GRACE_SECONDS = 2.0  # for the ranks that are to blame to write their records first


def end_after_culprit(words: str, hint: str) -> NoReturn:
    """End for what another rank ends for, when that has had time to write its record.

    A launcher may kill all others when the first is gone.

    Raises:
        PeerLostError: always.
    """
    time.sleep(_GRACE_SECONDS)
    raise PeerLostError(words, hint)


class Ended(Exception):  # noqa: N818 - no failure of this process
    """A program that ran in this rank's place is over, otherwise than well."""

    def __init__(self, code: int, signal_number: int | None, reason: str, when: float) -> None:
        super().__init__(reason)
        self.code, self.signal, self.reason, self.when = code, signal_number, reason, when


class Ending:
    """The end of this process; whoever comes first, the work or a signal, decides it."""

    def __init__(self, record: Path, rank: int) -> None:
        self._record = record
        self._rank = rank
        self._decided = threading.Lock()
        self._file: ExitFile | None = None
        with suppress(OSError):  # it may have room when it ends
            self._file = ExitFile(record)

    def watch_sigterm(self) -> None:
        """From here on SIGTERM ends this process with its record; call from the main thread."""
        pipe, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, lambda *_: None)
        threading.Thread(target=self._await_sigterm, args=(pipe,), name="sigterm", daemon=True).start()

    def _await_sigterm(self, pipe: int) -> None:
        while os.read(pipe, 1)[0] != signal.SIGTERM:
            pass  # another signal with a handler of its own
        self._decide()
        say("terminated by SIGTERM")
        self._leave(128 + signal.SIGTERM, signal=signal.SIGTERM, reason="terminated by SIGTERM")

    def guard(self, work: Callable[[], None]) -> NoReturn:
        """Do ``work`` and end this process with its outcome."""
        try:
            work()
        except SystemExit as asked:
            code = _exit_code(asked)
            self._end(code, reason=None if code == 0 else f"exit code {code}")
        except Ended as end:
            quote(end.reason)
            self._end(end.code, time=end.when, signal=end.signal, reason=_first_line(end.reason))
        except BaseException as error:  # noqa: BLE001 - whatever it was, it ends here and is recorded
            self.fail(error)
        self._end(0)

    def fail(self, error: BaseException, blamed: Blamed | None = None) -> NoReturn:
        """End this process for ``error``; any thread may call it.

        Args:
            error: told in the log, and in one line in the record.
            blamed: the rank that was waited for in vain, if it is known.
        """
        when = time.time()
        say(f"ended by {type(error).__name__}")
        if isinstance(error, HpcdlError):
            quote(f"error: {error.message}")
            if error.hint:
                quote(f"  {error.hint}")
        else:
            quote("".join(traceback.format_exception(error)).rstrip("\n"))
        exception, reason = type(error).__name__, _first_line(str(error))
        self._end(1, time=when, exception=exception, reason=reason, blamed=blamed)

    def _end(self, code: int, **told: Any) -> NoReturn:
        self._decide()
        self._leave(code, **told)

    def _decide(self) -> None:
        self._decided.acquire()  # never released: a second ender waits until the first has left

    def _leave(self, code: int, **told: Any) -> NoReturn:
        """Leave with ``code`` and a record of what is ``told``, by the names of its fields."""
        record = ExitRecord(self._rank, host_name(), time.time(), code)
        try:
            file = self._file or ExitFile(self._record)
            file.write(replace(record, **told))
        except Exception as error:  # noqa: BLE001 - no more than the record may be lost
            quote(f"cannot write {self._record}: {error}")
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        if code == 0 and "mpi4py.MPI" in sys.modules and started_by_mpich(os.environ):
            faulthandler.dump_traceback_later(_LONGEST_EXIT_SECONDS, exit=True)
            sys.exit(0)
        os._exit(code)


def _first_line(text: str) -> str:
    """In letters that every file can hold; half an emoji or a byte of a Latin-1 name is none."""
    line = (text.strip().splitlines() or [""])[0][:_REASON_LENGTH]
    return line.encode(errors="backslashreplace").decode()


def _exit_code(asked: SystemExit) -> int:
    """In the eight bits that the kernel keeps; no failure becomes a 0 by that."""
    code = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    return code and (code & 0xFF or 1)
