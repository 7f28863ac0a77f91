"""``hpcdl advance``, and what a job asks before it starts: a run from one job to the next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import typer

from hpcdl.cli.sweeps.groups import one_run
from hpcdl.errors import UsageError
from hpcdl.runs import store
from hpcdl.runs.chains.deciding import Stop
from hpcdl.workflow.jobs import going_on

NOT_YET = 75
"""Exit code of a job that was started too early, as sysexits.h has it for what may be tried again."""


def advance(run: str, runs: Path | None, job: tuple[int, str] | None) -> None:
    """Submit the next attempt of a run, if there is to be one now.

    Args:
        run: as the user names it.
        runs: the folder of runs.
        job: where the script of an attempt calls this at its end: which attempt it is, and how it ended.
    """
    folder = one_run(run, store.runs_folder(runs))
    name = folder.path.name
    if job is None:
        step = going_on.advance(folder)
    else:
        step = going_on.advance_from_job(folder, job[0], _ended(job[1]))
    why = step.decision.why
    if isinstance(step.decision, Stop):
        typer.echo(f"{name} does not go on now: {why}")
    elif step.job_id is None:
        typer.echo(f"{name} goes on, but not from here: {step.other}")
    else:
        typer.echo(f"{name} goes on as attempt {step.attempt}, job {step.job_id}: {why}")


def check_completed(runs: Sequence[Path]) -> None:
    """Exit with 75 if one of these runs has not completed, for a job that waited for them.

    Raises:
        typer.Exit: with that code.
    """
    left = [path for path in runs if not going_on.is_completed(store.find(str(path), path.parent))]
    for path in left:
        typer.echo(
            f"{path.name} has not completed, although its job ended with 0; this run has waited for it. "
            f"Submit this one again when it has: hpcdl resume"
        )
    if left:
        raise typer.Exit(NOT_YET)


def _ended(word: str) -> going_on.Ended:
    for ended in get_args(going_on.Ended):
        if word == ended:
            return ended  # type: ignore[no-any-return]
    raise UsageError(f"--ended {word}: it is none of {', '.join(get_args(going_on.Ended))}")
