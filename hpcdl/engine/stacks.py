"""Where the threads of this process are in the code."""

from __future__ import annotations

import faulthandler
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

_PYTHON = str(Path(threading.__file__).parent)
_PACKAGES = re.compile(r"/(?:site|dist)-packages/(?P<torch>torch/)?")
_WORKERS = {"data": "prefetch", "checkpoint": "checkpoint"}
"""Who does the work of a phase, where it is not the main thread: how the name of that thread begins."""


def place(phase: str) -> str:
    """``file:line in function`` of who works at ``phase``; rather not in Python's own code, or torch's."""
    frames = sys._current_frames()  # noqa: SLF001 - its documented name
    stacks = [list(_outwards(frames.get(thread))) for thread in _workers(phase)]
    innermost = [stack[0] for stack in stacks if stack]
    told = [frame for stack in stacks for frame in stack if not _is_foreign(frame.f_code.co_filename)]
    shown = next(iter(told or innermost[-1:]), None)
    return f"{shown.f_code.co_filename}:{shown.f_lineno} in {shown.f_code.co_name}" if shown else ""


def _workers(phase: str) -> Iterator[int]:
    """The identities of the threads that may do the work of ``phase``, the main one last."""
    prefix = _WORKERS.get(phase)
    helpers = [each for each in threading.enumerate() if prefix and each.name.startswith(prefix)]
    yield from (each.ident for each in [*helpers, threading.main_thread()] if each.ident is not None)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_foreign(file: str) -> bool:
    """Whether it is torch's or Python's own, where a thread that waits for something else is found."""
    installed = _PACKAGES.search(file)
    return bool(installed["torch"]) if installed else file.startswith((_PYTHON, "<frozen"))


def dump(headline: str) -> None:
    """Print the stacks of all threads into the log."""
    with suppress(OSError):  # a full disk: what follows is no less needed
        print(f"{headline}; all threads:", file=sys.stderr, flush=True)  # noqa: T201 - the log
    faulthandler.dump_traceback(all_threads=True)
