"""``python -m hpcdl.engine RUN_FOLDER``: one rank of a run."""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hpcdl.engine.ending import Ending
from hpcdl.engine.ranks import discover, own_rank
from hpcdl.engine.variables import own_place
from hpcdl.errors import EngineError, HpcdlError
from hpcdl.run_folder import RunFolder

if TYPE_CHECKING:
    from hpcdl.spec.experiment import ResolvedRun
    from hpcdl.spec.reading import AnyRun


def main() -> None:
    """Run one rank; its output goes to its log, its end to its exit record."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m hpcdl.engine RUN_FOLDER")
    folder = RunFolder(Path(sys.argv[1]).absolute())
    try:
        attempt, rank = _attempt(), own_rank(os.environ)
        _redirect_output(folder.rank_log(attempt, rank))
    except HpcdlError as error:
        sys.exit(f"error: {error.message}\n  {error.hint}")
    faulthandler.enable()  # a crash in native code leaves the stack of every thread in the log
    ending = Ending(folder.rank_exit(attempt, rank), rank)
    ending.watch_sigterm()
    ending.guard(lambda: _work(folder, attempt, ending))


def _attempt() -> int:
    value = os.environ.get("HPCDL_ATTEMPT", "1")
    if not (value.isascii() and value.isdigit() and int(value)):
        raise EngineError(
            f"HPCDL_ATTEMPT={value!r} is not the number of an attempt", "they count from 1; job.sh sets it"
        )
    return int(value)


def _redirect_output(log: Path) -> None:
    """Send everything this process prints, native libraries included, to its log."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise EngineError(
            f"cannot write the log {log}: {error.strerror}",
            "give the path of a run folder that you may write",
        ) from None
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(target, stream.fileno())
    os.close(target)


def _work(folder: RunFolder, attempt: int, ending: Ending) -> None:
    from hpcdl.spec.command import CommandRun

    run = _resolved(folder)
    if isinstance(run, CommandRun):
        from hpcdl.engine.command import run_command

        run_command(run, folder, attempt, discover(os.environ, run.layout.ranks))
    else:
        _train(run, folder, attempt, ending)


def _train(run: ResolvedRun, folder: RunFolder, attempt: int, ending: Ending) -> None:
    place = discover(os.environ, run.decomposition.ranks)
    for name, value in own_place(place, run.layout).items():
        os.environ.setdefault(name, value)  # for models of the user's own
    # Imported late: torch takes seconds, and whatever it complains about belongs in the log.
    from hpcdl.engine.train import train

    train(run, folder, attempt, place, ending.fail)


def _resolved(folder: RunFolder) -> AnyRun:
    from hpcdl.spec import reading

    try:
        return reading.run(folder.resolved.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{folder.resolved} cannot be used: {error}",
            "hpcdl submit writes it; submit the experiment again",
        ) from None


if __name__ == "__main__":
    main()
