"""``hpcdl list``, ``status`` and ``cancel`` of a sweep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from hpcdl.cli import render, screens
from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics, store
from hpcdl.runs.record import Attempt, RunState
from hpcdl.runs.sweeps import groups
from hpcdl.runs.sweeps.groups import Group
from hpcdl.spec.points import value_text
from hpcdl.units import format_count, ranges


def meant(query: str, runs: Path) -> Group | None:
    """The sweep that an argument names, as ``last`` does if the newest run is of one; None: something else.

    Raises:
        UsageError: its runs are gone.
    """
    found = _newest(runs) if query == "last" else groups.find(query, runs)
    if found and not found.folders:
        raise UsageError(f"the runs of {found.name} are gone", f"they were in {found.runs}")
    return found


def _newest(runs: Path) -> Group | None:
    known = groups.names(runs)
    return groups.of_run(store.find("last", runs)) if known else None


def one_run(query: str, runs: Path) -> RunFolder:
    """The one run that an argument names.

    Raises:
        UsageError: no run or several are meant, as by the name of a sweep.
    """
    group = meant(query, runs)
    if group:
        raise UsageError(
            f"{group.name} is a sweep of {len(group.points)} runs, and this takes one",
            f"name one, for example {next(iter(group.points))}; hpcdl status {group.name} lists them",
        )
    return store.find(query, runs)


def named(query: str, runs: Path) -> Group:
    """The sweep that an argument names.

    Raises:
        UsageError: it names none.
    """
    found = meant(query, runs)
    if found is None:
        raise groups.missing(query, runs)
    return found


def rows(
    runs: Path,
    attempts: Mapping[RunFolder, Attempt],
    one: Callable[[RunFolder, Attempt], dict[str, Any]],
    *,
    every: bool,
) -> list[dict[str, Any]]:
    """The rows of ``hpcdl list``: a sweep where its first run is, or every run of it."""
    group_of = {run: group for group in _legible(runs) for run in group.points}
    members: dict[str, list[Attempt]] = defaultdict(list)
    for folder, attempt in attempts.items():
        if group := group_of.get(folder.path.name):
            members[group.name].append(attempt)
    found = {}
    for folder, attempt in attempts.items():
        group = group_of.get(folder.path.name)
        if group is None or every:
            found[folder.path.name] = one(folder, attempt) | {"group": group.name if group else None}
        elif group.name not in found:
            found[group.name] = row(group, members[group.name])
    return list(found.values())


def _legible(runs: Path) -> Iterator[Group]:
    """The sweeps whose file can be read; of the others that is said, and each of their runs is a row."""
    for name in groups.names(runs):
        try:
            yield groups.read(runs, name)
        except UsageError as error:
            render.warning(f"the runs of {name} are listed one by one: {error.message}", error.hint)


def row(group: Group, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """A sweep as one row of ``hpcdl list``."""
    states = [attempt.state for attempt in attempts]
    return {
        "run": group.name,
        "state": groups.overall(states).value,
        "site": group.site,
        "decomposition": None,
        "command": None,
        "job_id": None,
        "step": None,
        "steps": None,
        "last_loss": None,
        "path": str(group.runs),
        "group": group.name,
        "points": len(states),
        "states": groups.counts(states),
    }


# --- status --------------------------------------------------------------------------------------


def status(group: Group, attempts: Sequence[Attempt], *, json: bool) -> None:
    """Show every point of a sweep: its values, state, step, loss, rate and job."""
    told = row(group, attempts)
    points = [_point(group, folder, attempt) for folder, attempt in zip(group.folders, attempts, strict=True)]
    if json:
        kept = {"group": group.name, "state": told["state"], "states": told["states"], "site": group.site}
        render.print_json(kept | {"at_once": group.at_once, "points": points})
        return
    render.line(f"[bold]{escape(group.name)}[/]", f"  {screens.words(told['states'])}, site {group.site}")
    _table(group, points)
    for reason, numbers in _reasons(points).items():
        which = f"{'points' if len(numbers) > 1 else 'point'} {ranges(numbers)}"
        render.plain(f"{which}: {render.printable(reason)}", "red")


def _reasons(points: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Why points came to nothing, each reason once, with the points by their place in the sweep."""
    found: dict[str, list[int]] = defaultdict(list)
    for each in points:
        if each["reason"] and RunState(each["state"]).failed:
            found[each["reason"]].append(groups.number(each["run"]))
    return found


def _point(group: Group, folder: RunFolder, attempt: Attempt) -> dict[str, Any]:
    done = metrics.progress(metrics.steps(folder))
    steps = store.resolved(folder).experiment.steps
    return {
        "run": folder.path.name,
        "point": dict(group.points[folder.path.name]),
        "state": attempt.state.value,
        "reason": attempt.reason,
        "attempt": attempt.number,
        "job_id": attempt.job_id,
        "step": done.step if steps else None,
        "steps": steps,
        "last_loss": done.last_loss,
        "tokens_per_second": done.tokens_per_second,
        "path": str(folder.path),
    }


def _table(group: Group, points: Sequence[Mapping[str, Any]]) -> None:
    columns: dict[str, render.Side] = {
        "run": "left", **dict.fromkeys(group.keys, "right"), "state": "left", "step": "right",
        "loss": "right", "tokens/s": "right", "job": "left",
    }  # fmt: skip
    place = 1 + len(group.keys)
    rows = []
    for each in points:
        step = "-" if each["steps"] is None else f"{each['step']}/{each['steps']}"
        values = [value_text(value) for value in each["point"].values()]
        loss, rate = loss_text(each["last_loss"]), count_text(each["tokens_per_second"])
        cells = [each["run"], *values, each["state"], step, loss, rate, each["job_id"] or "-"]
        rows.append(render.Row(cells, styles={place: render.colour(each["state"])}))
    render.table(columns, rows)


def loss_text(value: float | None) -> str:
    """A loss as tables show it."""
    return "-" if value is None else f"{value:.4f}"


def count_text(value: float | None) -> str:
    """A large number as tables show it."""
    return "-" if value is None else format_count(value)


def cancel(group: Group) -> None:
    """End every point that is not over."""
    from hpcdl.workflow.sweeps import calling_off  # noqa: PLC0415 - it brings the planner, which a list need not load

    done = calling_off.cancel(group)
    if done.asked:
        typer.echo(
            f"asked the scheduler to cancel {done.asked} of {len(group.points)} points of {group.name}"
        )
    if done.between:
        typer.echo(f"{_points_are(done.between)} between two jobs, and will not go on")
    if done.unsubmitted:
        typer.echo(f"{_points_are(done.unsubmitted)} not submitted, until hpcdl resume {group.name}")
    if not any(done):
        typer.echo(f"no point of {group.name} is in the queue: {screens.words(counted(group))}")


def _points_are(count: int) -> str:
    return "1 point is" if count == 1 else f"{count} points are"


def counted(group: Group) -> dict[str, int]:
    """How many points are in which state, as last seen."""
    return groups.counts(store.current(folder).state for folder in group.folders)
