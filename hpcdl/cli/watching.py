"""``hpcdl list``, ``status``, ``logs``, ``cancel`` and ``collect``: verbs on runs that exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from hpcdl import workflow
from hpcdl.cli import render
from hpcdl.errors import SchedulerError, UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import archive, metrics, store
from hpcdl.runs.logs import Follower, check_rank
from hpcdl.runs.record import Attempt, attempts, describe
from hpcdl.telemetry import RunEvent, read


@dataclass(frozen=True)
class LogChoice:
    """Which logs: of one rank or all, of one attempt or the newest."""

    rank: int | None
    attempt: int | None


def list_runs(runs: Path | None, *, json: bool) -> None:
    """Show every run, oldest first."""
    where = store.runs_folder(runs)
    folders = store.all_runs(where)
    rows = [_row(folder, attempt) for folder, attempt in zip(folders, _refreshed(folders), strict=True)]
    if json:
        render.print_json(rows)
    else:
        render.runs(rows, where)


def _refreshed(folders: Sequence[RunFolder]) -> list[Attempt]:
    """States as they are now, or as last seen where a scheduler cannot be asked from here."""
    try:
        return workflow.refresh(folders)
    except SchedulerError as error:
        render.warning(f"states are as last seen: {error.message}", error.hint)
        return [store.current(folder) for folder in folders]


def _row(folder: RunFolder, attempt: Attempt) -> dict[str, Any]:
    run = store.resolved(folder)
    done = metrics.progress(metrics.steps(folder))
    return {
        "run": folder.path.name,
        "state": attempt.state.value,
        "site": run.site,
        "decomposition": str(run.decomposition),
        "job_id": attempt.job_id,
        "step": done.step,
        "steps": run.experiment.training.steps,
        "last_loss": done.last_loss,
        "path": str(folder.path),
    }


def status(run: str, runs: Path | None, *, json: bool) -> None:
    """Show one run."""
    folder = store.find(run, store.runs_folder(runs))
    workflow.refresh([folder])
    record = _status(folder)
    if json:
        render.print_json(record)
    else:
        render.status(folder, record)


def _status(folder: RunFolder) -> dict[str, Any]:
    history = attempts(read(folder.launcher_events, RunEvent))
    newest = store.current(folder)
    done = metrics.progress(metrics.steps(folder))
    row = _row(folder, newest)
    return row | {
        "reason": newest.reason,
        "attempts": [
            {
                "job_id": each.job_id,
                "state": each.state.value,
                "exit_code": each.exit_code,
                "reason": each.reason,
            }
            for each in history
        ],
        "first_loss": done.first_loss,
        "validation_loss": done.validation_loss,
        "tokens_per_second": done.tokens_per_second,
        "mfu": done.mfu,
        "hfu": done.hfu,
        "spent": done.spent,
        "first_failure": _first_failure(folder, newest),
    }


def _first_failure(folder: RunFolder, attempt: Attempt) -> dict[str, Any] | None:
    record = store.culprit(folder, attempt)
    if record is None:
        return None
    return {
        "rank": record.rank,
        "host": record.host,
        "exit_code": record.exit_code,
        "signal": record.signal,
        "reason": describe(record),
        "log": str(folder.rank_log(attempt.number, record.rank)),
    }


def logs(run: str, runs: Path | None, choice: LogChoice, *, follow: bool) -> None:
    """Print logs, once or until the run is over."""
    folder = store.find(run, store.runs_folder(runs))
    number = choice.attempt or store.current(folder).number
    if not folder.logs(number).is_dir():
        raise UsageError(
            f"{folder.path.name} has no attempt {number}; its newest is {store.current(folder).number}"
        )
    check_rank(choice.rank, store.resolved(folder).layout.ranks)
    follower = Follower(folder, number, choice.rank)
    try:
        for _ in workflow.watch(folder) if follow else ():
            render.log_lines(follower.new_lines())
    except KeyboardInterrupt:
        render.detached(folder)
        return
    render.log_lines(follower.new_lines(ended=True))


def cancel(run: str, runs: Path | None) -> None:
    """End a run."""
    folder = store.find(run, store.runs_folder(runs))
    attempt = workflow.cancel(folder)
    if attempt.state.over:
        typer.echo(f"{folder.path.name} is already over: {attempt.state.value}")
    else:
        typer.echo(f"asked the scheduler to cancel {folder.path.name} (job {attempt.job_id})")


def collect(run: str, runs: Path | None, output: Path | None) -> None:
    """Pack one run."""
    folder = store.find(run, store.runs_folder(runs))
    workflow.refresh([folder])
    target = (output or Path(f"{folder.path.name}.tar.gz")).absolute()
    with render.progress_of("packing") as progress:
        count = archive.pack(folder, target, progress)
    typer.echo(f"{count} files of {folder.path.name} are in {target}")
