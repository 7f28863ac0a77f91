"""``python -m hpcdl.engine RUN_FOLDER``: one rank of a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hpcdl.engine.ending import Ending
from hpcdl.engine.ranks import discover, own_rank
from hpcdl.errors import EngineError
from hpcdl.run_folder import RunFolder
from hpcdl.spec.experiment import ResolvedRun


def main() -> None:
    """Run one rank; its output goes to its log, its end to its exit record."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m hpcdl.engine RUN_FOLDER")
    folder = RunFolder(Path(sys.argv[1]).absolute())
    attempt = int(os.environ.get("HPCDL_ATTEMPT", "1"))
    rank = own_rank(os.environ)
    _redirect_output(folder.rank_log(attempt, rank))
    ending = Ending(folder.rank_exit(attempt, rank), rank)
    ending.watch_sigterm()
    ending.guard(lambda: _train(folder, attempt))


def _redirect_output(log: Path) -> None:
    """Send everything this process prints, native libraries included, to its log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(target, stream.fileno())
    os.close(target)


def _train(folder: RunFolder, attempt: int) -> None:
    run = _resolved(folder)
    place = discover(os.environ, run.decomposition.ranks)
    # Imported late: torch takes seconds, and whatever it complains about belongs in the log.
    from hpcdl.engine.train import train

    train(run, folder, attempt, place)


def _resolved(folder: RunFolder) -> ResolvedRun:
    try:
        return ResolvedRun.model_validate_json(folder.resolved.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{folder.resolved} cannot be used: {error}") from None


if __name__ == "__main__":
    main()
