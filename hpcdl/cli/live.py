"""``hpcdl watch``: a run on the whole screen, until it is over or one has seen enough."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live

from hpcdl.cli import render
from hpcdl.cli.asking import refreshed
from hpcdl.cli.frames import Size, frame
from hpcdl.cli.sweeps import groups
from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.record import Attempt, RunState
from hpcdl.runs.reports.live import Watcher
from hpcdl.schedulers.known import scheduler
from hpcdl.workflow.jobs import going_on
from hpcdl.workflow.states import following
from hpcdl.workflow.states.asking import Outside

_ONCE = Size(100, 40)  # where there is no terminal to ask


def watch(run: str, runs: Path | None, interval_s: float, *, once: bool) -> None:
    """Show a run until it is over; q or Ctrl-C detaches.

    Raises:
        UsageError: there is no terminal to draw on, or the run is a sweep.
        EngineError: the run ended, and did not complete.
    """
    where = store.runs_folder(runs)
    folder = groups.one_run(run, where)
    console = render.console()
    if once:
        _show_once(folder, console)
        return
    if not (console.is_terminal and sys.stdin.isatty()):
        raise UsageError(
            "watch draws on a terminal, and there is none",
            f"use hpcdl logs {folder.path.name} --follow, or --once for one look",
        )
    try:
        last = _watch(folder, console, interval_s)
    except KeyboardInterrupt:
        render.detached(folder)
        return
    if last.state not in (RunState.COMPLETED, RunState.PAUSED):
        raise render.ended_badly(folder, last)


def _show_once(folder: RunFolder, console: Console) -> None:
    (attempt,) = refreshed([folder])
    size = Size(console.width, console.height) if console.is_terminal else _ONCE
    for line in frame(_watcher(folder).look(attempt, time.time()), size, plain=True):
        console.print(line, soft_wrap=True)


def _watcher(folder: RunFolder) -> Watcher:
    kind = following.site_of(folder).scheduler.kind
    return Watcher(folder, limited=scheduler(kind).LIMITED)


def _watch(folder: RunFolder, console: Console, interval_s: float) -> Attempt:
    """Draw until the run is over; returns how it ended, and leaves the last frame on the screen."""
    watcher = _watcher(folder)
    outside = Outside(sleep=_wait_for_key)
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        for last in going_on.attempts_of(folder, interval_s, outside):
            moment = watcher.look(last, time.time())
            live.update(Group(*frame(moment, Size(console.width, console.height))), refresh=True)
    for line in frame(moment, Size(console.width, console.height - 1), plain=True):
        console.print(line, soft_wrap=True)
    return last


@contextmanager
def _keys() -> Iterator[None]:
    """Keys are read one by one and not shown; Ctrl-C still interrupts."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _wait_for_key(seconds: float) -> None:
    """Wait, but not after q.

    Raises:
        KeyboardInterrupt: it was pressed, or the terminal has gone.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            keys = os.read(sys.stdin.fileno(), 1024)  # all there are: sys.stdin would keep some from select
            if not keys or b"q" in keys.lower():
                raise KeyboardInterrupt
