"""One rank of a run whose engine is the user's own program: meet the others, start it, tell how it ended."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from hpcdl.engine import gathering, port
from hpcdl.engine.child import Child, End
from hpcdl.engine.ending import Ended
from hpcdl.engine.meeting import Meeting, choose_interface, own_address
from hpcdl.engine.preflight import observing
from hpcdl.engine.preflight.judging import Plan, misplaced
from hpcdl.engine.preflight.recording import gathered, noting_suspects, with_told, write
from hpcdl.engine.ranks import Place
from hpcdl.engine.request import Request
from hpcdl.engine.variables import as_torchrun
from hpcdl.placement import Placement, line
from hpcdl.run_folder import RunFolder
from hpcdl.spec.command import CommandRun
from hpcdl.telemetry import RunEvent, append

_LOOK_S = 5.0  # between looks for the walltime's end: every rank looks


def run_command(run: CommandRun, folder: RunFolder, attempt: int, place: Place) -> None:
    """Run the program in this rank's place.

    Raises:
        EngineError: the others never came, or it cannot be started.
        Ended: it ended otherwise than well.
    """
    asked = run.experiment.command
    choose_interface(run.rendezvous)
    with ExitStack() as held:
        with noting_suspects(folder, attempt):
            master, told = _meet(Meeting(place, run.rendezvous, folder.rendezvous(attempt)), held)
        if place.rank == 0:
            _record(run, folder, gathered(attempt, told))
        error_file = folder.rank_error(attempt, place.rank)
        error_file.parent.mkdir(parents=True, exist_ok=True)
        error_file.unlink(missing_ok=True)  # of an earlier try
        variables = _variables(run, folder) | {"TORCHELASTIC_ERROR_FILE": str(error_file)}
        environment = os.environ | variables | as_torchrun(place, run.layout, master)
        child = Child(asked.run, asked.folder, environment)
        if asked.warning:
            number = getattr(signal, f"SIG{asked.warning.signal}")
            _Watch(child, number, folder, (attempt, place.rank)).start()
        end = child.wait()
        when = time.time()
        child.clear()
    if end.code:
        raise _ended(end, when, child, folder.rank_error(attempt, place.rank))


def _meet(meeting: Meeting, held: ExitStack) -> tuple[tuple[str, str], list[str]]:
    """Address and port for the program's own store, which rank 0 holds; there also what all ranks see."""
    mine = line(observing.seat(meeting.place), observing.host(meeting.place))
    if meeting.place.rank:
        address, _, number = gathering.follow(meeting, mine).partition(" ")
        return (address, number), []
    number = str(held.enter_context(port.hold()).getsockname()[1])
    address = own_address(meeting.rules)
    return (address, number), [mine, *gathering.lead(meeting, f"{address} {number}")]


def _record(run: CommandRun, folder: RunFolder, placement: Placement) -> None:
    """Where the ranks are, and what is wrong with that: the program may know better, so it is only told."""
    plan = Plan(run.layout, run.rendezvous.address == "loopback")
    found = [replace(finding, grave=False) for finding in misplaced(placement, plan)]
    write(folder, with_told(placement, found))


def _variables(run: CommandRun, folder: RunFolder) -> dict[str, str]:
    return {
        "HPCDL_RUN_FOLDER": str(folder.path),
        "HPCDL_SEED": str(run.experiment.command.seed),
        "TORCHELASTIC_RUN_ID": run.run,
        # Else a log is empty for as long as Python's buffer is not full.
        "PYTHONUNBUFFERED": os.environ.get("PYTHONUNBUFFERED", "1"),
    }


def _ended(end: End, when: float, child: Child, error_file: Path) -> Ended:
    if child.told_to_end:  # what it does then, by whatever code, is a consequence
        return Ended(end.code, signal.SIGTERM, f"ended with {end.code} after SIGTERM", when)
    if end.signal:
        return Ended(end.code, end.signal, f"killed by {signal.Signals(end.signal).name}", when)
    return Ended(end.code, None, f"exit code {end.code}{_exception(error_file)}", when)


def _exception(error_file: Path) -> str:
    """What ``torch.distributed.elastic``'s ``@record`` wrote of the exception, if the program has it."""
    try:
        told = json.loads(error_file.read_text(encoding="utf-8"))["message"]["message"]
        return f": {told.splitlines()[0]}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ""


class _Watch(threading.Thread):
    """Sends the program a signal when the walltime is nearly over."""

    def __init__(self, child: Child, number: int, folder: RunFolder, who: tuple[int, int]) -> None:
        super().__init__(name="walltime", daemon=True)
        self._child, self._number, self._folder = child, number, folder
        self._attempt, self._rank = who

    def run(self) -> None:
        request = Request(self._folder.request(self._attempt))
        while not request.made():
            time.sleep(_LOOK_S)
        if self._rank == 0:  # noted first: the program may end at once, and this process with it
            told = {"signal": signal.Signals(self._number).name}
            with suppress(OSError):  # on a full disk the program is told all the same
                append(self._folder.engine_events, RunEvent("warned", time.time(), self._attempt, told))
        self._child.tell(self._number)
