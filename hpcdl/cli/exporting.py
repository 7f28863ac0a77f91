"""``hpcdl export``: the engine does it, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from hpcdl import shell
from hpcdl.cli import render
from hpcdl.cli.sweeps.groups import one_run
from hpcdl.errors import EngineError, UsageError
from hpcdl.runs import store
from hpcdl.spec.experiment import ResolvedRun
from hpcdl.workflow.states import following

_TIMEOUT_S = 24 * 3600.0


def export(run: str, runs: Path | None, out: Path, step: int | None) -> None:
    """Write the weights of a run's checkpoint for the library ``transformers``.

    Raises:
        UsageError: the run is not the bundled engine's.
        EngineError: with the engine's own words when it could not.
    """
    folder = one_run(run, store.runs_folder(runs))
    if not isinstance(store.resolved(folder), ResolvedRun):
        raise UsageError(
            f"{folder.path.name} ran a command of yours, whose checkpoints hpcdl does not know",
            "export writes those of the bundled engine",
        )
    python = following.site_of(folder).software.python or sys.executable
    chosen = [] if step is None else ["--step", str(step)]
    command = [python, "-m", "hpcdl.engine.export", str(folder.path), str(out.absolute()), *chosen]
    with render.busy("exporting"):
        done = shell.run(command, timeout_s=_TIMEOUT_S)
    if done.exit_code:
        message, _, hint = done.words.removeprefix("error: ").partition("\n")
        raise EngineError(message, hint.strip() or None)
    typer.echo(done.stdout.strip())
