"""``hpcdl list``, ``status``, ``cancel`` and ``collect``: verbs on runs that exist."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from hpcdl.cli import render, screens, slowness
from hpcdl.cli.asking import legible, refreshed
from hpcdl.cli.sweeps import groups
from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics, shapes, store
from hpcdl.runs.archive.packing import INDEX
from hpcdl.runs.blame import describe
from hpcdl.runs.chains.deciding import GoOn
from hpcdl.runs.chains.links import outlook
from hpcdl.runs.failures.diagnosis import diagnose
from hpcdl.runs.nodes.placements import placement
from hpcdl.runs.nodes.stragglers import stragglers
from hpcdl.runs.nodes.working import works
from hpcdl.runs.record import Attempt, RunState, attempts, up_to
from hpcdl.spec.experiment import ResolvedRun
from hpcdl.spec.reading import Outline
from hpcdl.telemetry import ExitRecord
from hpcdl.workflow.states import following


@dataclass(frozen=True)
class Listed:
    """Which runs: those of one sweep or all, and whether a sweep is one row."""

    sweep: str | None = None
    every: bool = False


def list_runs(runs: Path | None, listed: Listed, *, json: bool) -> None:
    """Show every run, oldest first; a sweep where its first run is."""
    where = store.runs_folder(runs)
    known = legible(groups.named(listed.sweep, where).folders if listed.sweep else store.all_runs(where))
    newest = dict(zip(known, refreshed(list(known)), strict=True))

    def one(folder: RunFolder, attempt: Attempt) -> dict[str, Any]:
        return _row(folder, attempt, known[folder])

    rows = groups.rows(where, newest, one, every=listed.every or listed.sweep is not None)
    if json:
        render.print_json(rows)
    else:
        screens.runs(rows, where)


def _row(folder: RunFolder, attempt: Attempt, run: Outline) -> dict[str, Any]:
    last = metrics.newest(folder)
    return {
        "run": folder.path.name,
        "state": attempt.state.value,
        "site": run.site,
        "decomposition": str(run.decomposition) if run.decomposition else None,
        "command": run.command,
        "job_id": attempt.job_id,
        "step": (last.step if last else 0) if run.steps else None,
        "steps": run.steps,
        "last_loss": last and last.loss,
        "path": str(folder.path),
    }


def status(run: str, runs: Path | None, *, json: bool) -> None:
    """Show one run, or the points of a sweep."""
    group = groups.meant(run, store.runs_folder(runs))
    if group:
        groups.status(group, refreshed(group.folders), json=json)
        return
    folder = store.find(run, store.runs_folder(runs))
    newest = following.last_known(folder)
    try:
        (newest,) = following.refresh([folder])
    finally:  # as last seen, where the scheduler does not answer
        record = _status(folder, newest)
        if json:
            render.print_json(record)
        else:
            screens.status(folder, record)


def _status(folder: RunFolder, newest: Attempt) -> dict[str, Any]:
    events = store.events(folder)
    history = up_to(newest, attempts(events))
    done = metrics.progress(metrics.steps(folder), shapes.since(events))
    row = _row(folder, newest, store.outline(folder))
    return (
        row
        | {
            "reason": newest.reason,
            "attempts": [
                {
                    "number": each.number,
                    "job_id": each.job_id,
                    "state": each.state.value,
                    "exit_code": each.exit_code,
                    "reason": each.reason,
                    "after": list(each.after),
                    "wait": each.wait,
                    "decomposition": _decomposition(folder, each),
                }
                for each in history
            ],
            "chain": _chain(folder, newest, len(history)),
            "first_loss": done.first_loss,
            "validation_loss": done.validation_loss,
            "tokens_per_second": done.tokens_per_second,
            "mfu": done.mfu,
            "hfu": done.hfu,
            "spent": done.spent,
            "stragglers": [slowness.record(each) for each in stragglers(works(folder))],
        }
        | _failure(folder, newest)
    )


def _chain(folder: RunFolder, newest: Attempt, count: int) -> dict[str, Any]:
    found = outlook(folder, newest)
    return {
        "goes_on": isinstance(found, GoOn),
        "reason": found.why,
        "attempts": count,
        "of": store.resolved(folder).experiment.chain.attempts,
    }


def _decomposition(folder: RunFolder, attempt: Attempt) -> str | None:
    run = store.resolved(folder, attempt.number)
    return str(run.decomposition) if isinstance(run, ResolvedRun) else None


def _failure(folder: RunFolder, attempt: Attempt) -> dict[str, Any]:
    found = diagnose(folder, attempt)
    return {
        "first_failure": found.culprit and _first_failure(folder, attempt, found.culprit),
        "cause": found.cause and asdict(found.cause),
        "endings": [{"ranks": list(each.ranks), "last_line": each.last_line} for each in found.endings],
    }


def _first_failure(folder: RunFolder, attempt: Attempt, record: ExitRecord) -> dict[str, Any]:
    return {
        "rank": record.rank,
        "host": record.host,
        "device": _device(folder, attempt.number, record.rank),
        "exit_code": record.exit_code,
        "signal": record.signal,
        "reason": describe(record),
        "log": str(folder.rank_log(attempt.number, record.rank)),
    }


def _device(folder: RunFolder, attempt: int, rank: int) -> str | None:
    """The GPU that a rank had; None where it had none, or nobody looked."""
    try:
        found = {seat.rank: seat.device for seat in placement(folder, attempt).seats}.get(rank)
    except UsageError:
        return None
    return f"{found.index} ({' '.join(filter(None, (found.name, found.identity)))})" if found else None


def cancel(run: str, runs: Path | None) -> None:
    """End a run, or every point of a sweep that is not over."""
    from hpcdl.workflow.jobs import submitting  # noqa: PLC0415 - it brings the planner, which a list need not load

    group = groups.meant(run, store.runs_folder(runs))
    if group:
        groups.cancel(group)
        return
    folder = store.find(run, store.runs_folder(runs))
    attempt = submitting.cancel(folder)
    name, state = folder.path.name, attempt.state
    if not state.over:
        typer.echo(f"asked the scheduler to cancel {name} (job {attempt.job_id})")
    elif attempt.cancel_requested and state not in (RunState.COMPLETED, RunState.CANCELLED):
        typer.echo(f"{name} is {state.value}, and does not go on by itself; hpcdl resume {name} goes on")
    else:
        typer.echo(f"{name} is already over: {state.value}")


def collect(run: str, runs: Path | None, output: Path | None) -> None:
    """Pack one run."""
    from hpcdl.workflow.collecting import collect as pack  # noqa: PLC0415 - a list need not load it

    folder = groups.one_run(run, store.runs_folder(runs))
    (newest,) = refreshed([folder])
    target = (output or Path(f"{folder.path.name}.tar.gz")).absolute()
    with render.progress_of("packing") as progress:
        entries = pack(folder, target, _status(folder, newest), progress)
    removed = sum(entry.removed or 0 for entry in entries)
    left_out = sum(entry.problem is not None for entry in entries)
    typer.echo(f"{len(entries) - left_out} files of {folder.path.name} are in {target}")
    if left_out:
        typer.echo(f"{left_out} were left out; {INDEX} in it says why")
    if removed:
        typer.echo(f"{removed} secrets were taken out; {INDEX} in it says where")
