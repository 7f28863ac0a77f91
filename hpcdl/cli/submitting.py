"""``hpcdl submit`` and ``hpcdl resume``: everything that ends in a watched or unwatched job."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import typer

from hpcdl import workflow
from hpcdl.cli import render
from hpcdl.cli.plans import tables
from hpcdl.errors import EngineError, InfeasibleError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.record import RunState


class Watch(Enum):
    """How long a submitting command stays."""

    NO = "no"
    WAIT = "wait"
    FOLLOW = "follow"

    @classmethod
    def chosen(cls, *, wait: bool, follow: bool) -> Watch:
        """From the two flags; following includes waiting."""
        return cls.FOLLOW if follow else cls.WAIT if wait else cls.NO


def _study(request: workflow.Request) -> workflow.Study:
    study = workflow.study(request)
    if study.plan:
        tables.warnings(study.plan)
        if study.plan.infeasible:
            raise InfeasibleError(study.plan.infeasible)
    return study


def show_script(request: workflow.Request) -> None:
    """Print the script a submission would use."""
    study = _study(request)
    workflow.check_ready(study)
    folder = store.runs_folder(None) / "RUN"
    typer.echo(workflow.render(workflow.resolve(study, "dry-run"), study.site, folder), nl=False)


def submit(request: workflow.Request, runs: Path | None, *, watch: Watch, json: bool) -> None:
    """Plan, prepare and submit; then watch as asked."""
    with render.busy("planning"):
        study = _study(request)
    folder = workflow.prepare(study, store.runs_folder(runs))
    job_id = workflow.submit(folder)
    if not json:
        render.submitted(study, folder, job_id)
    if watch is Watch.NO and not json:
        render.next_commands(folder, ("status", "logs --follow", "cancel"))
    _stay(folder, watch, quiet=json)
    if json:
        render.print_json(_submitted(folder, job_id))


def resume(run: str, runs: Path | None, *, follow: bool) -> None:
    """Submit another attempt of a run."""
    folder = store.find(run, store.runs_folder(runs))
    job_id = workflow.resume(folder)
    render.line(f"submitted [bold]{folder.path.name}[/] again as job {job_id}")
    _stay(folder, Watch.FOLLOW if follow else Watch.NO, quiet=False)


def _submitted(folder: RunFolder, job_id: str) -> dict[str, Any]:
    attempt = store.current(folder)
    return {"run": folder.path.name, "path": str(folder.path), "job_id": job_id, "state": attempt.state.value}


def _stay(folder: RunFolder, watch: Watch, *, quiet: bool) -> None:
    """Watch a run to its end.

    Raises:
        EngineError: the run did not complete.
    """
    if watch is Watch.NO:
        return
    try:
        last = render.follow(workflow.watch(folder), quiet=quiet or watch is Watch.WAIT)
    except KeyboardInterrupt:
        render.detached(folder)
        return
    if last.attempt.state is not RunState.COMPLETED:
        render.failure(folder, last.attempt)
        raise EngineError(
            f"{folder.path.name} {last.attempt.state.value}: {last.attempt.reason or 'no reason given'}"
        )
    if not quiet:
        render.summary(folder, last)
