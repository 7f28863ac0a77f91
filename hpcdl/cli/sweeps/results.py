"""``hpcdl results``: what the points of a sweep came to."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdl.cli import render
from hpcdl.cli.asking import refreshed
from hpcdl.cli.plans.asking import plots
from hpcdl.cli.sweeps.groups import count_text, loss_text, named
from hpcdl.errors import UsageError
from hpcdl.runs import store
from hpcdl.runs.sweeps import results
from hpcdl.runs.sweeps.groups import Group
from hpcdl.runs.sweeps.results import NUMBERS, Result
from hpcdl.spec.points import value_text
from hpcdl.telemetry import write_whole


@dataclass(frozen=True)
class View:
    """How results are shown."""

    sort: str | None = None
    csv: Path | None = None
    plot: Path | None = None
    over: str | None = None
    json: bool = False


def show(query: str, runs: Path | None, view: View) -> None:
    """One line a point; the best one is marked.

    Raises:
        UsageError: no such sweep, an unknown column, or a file that cannot be written.
    """
    if view.over and not view.plot:
        raise UsageError(f"--over {view.over} is the key below a figure", "name its file with --plot FILE")
    group = named(query, store.runs_folder(runs))
    found = results.results(group, refreshed(group.folders))
    if view.sort is not None:
        _check(view.sort, [*group.keys, *NUMBERS], "--sort")
        found = results.ordered(found, view.sort)
    drawing = _drawing(view, group, found) if view.plot else None
    best = results.best(found)
    records = [_result(each, best) for each in found]
    if view.csv:
        _write(view.csv, group, found, best)
    if view.json:
        render.print_json({"group": group.name, "points": records})
    else:
        _results_table(group, found, best)
    if drawing and view.plot:
        drawing(view.plot)


def _drawing(view: View, group: Group, found: Sequence[Result]) -> Callable[[Path], None]:
    """What draws the figure that is asked for.

    Raises:
        UsageError: it cannot be drawn, or there is nothing to draw.
    """
    plots(view.plot or Path())
    over = view.over or _varying(group)
    _check(over, group.keys, "--over")
    if all(each.numbers[results.loss_key(found)] is None for each in found):
        raise UsageError(f"--plot {view.plot}: no point of {group.name} has a loss yet")
    from hpcdl.cli.plans import curves  # noqa: PLC0415 - matplotlib is an extra

    return lambda path: curves.results(path, group.name, found, over)


def _varying(group: Group) -> str:
    """The first key that takes several numbers; the first one if none does."""
    for key in group.keys:
        values = {values[key] for values in group.points.values() if isinstance(values[key], int | float)}
        if len(values) > 1:
            return key
    return group.keys[0]


def _check(key: str, known: Sequence[str], flag: str) -> None:
    if key not in known:
        raise UsageError(f"{flag} {key}: there is no such column", f"one of {', '.join(known)}")


def _result(each: Result, best: Result | None) -> dict[str, Any]:
    known = {"run": each.run, "point": dict(each.values), "state": each.state}
    return known | dict(each.numbers) | {"best": each is best}


_SHOWN: dict[str, str] = {
    "first_loss": "first", "last_loss": "last", "best_loss": "lowest", "validation_loss": "validation",
    "tokens_per_second": "tokens/s", "mfu": "MFU", "node_hours": "node-hours",
}  # fmt: skip


def _results_table(group: Group, found: Sequence[Result], best: Result | None) -> None:
    columns: dict[str, render.Side] = {
        "run": "left", **dict.fromkeys(group.keys, "right"), "state": "left", "step": "right",
        **dict.fromkeys(_SHOWN.values(), "right"), "": "left",
    }  # fmt: skip
    place = 1 + len(group.keys)
    rows = []
    for each in found:
        values = [value_text(value) for value in each.values.values()]
        cells = [each.run, *values, each.state, *_cells(each), "best" if each is best else ""]
        style = "bold" if each is best else None
        rows.append(render.Row(cells, style, {place: render.colour(each.state)}))
    render.table(columns, rows)


def _cells(each: Result) -> list[str]:
    told = each.numbers
    step = "-" if told["steps"] is None else f"{told['step']}/{told['steps']}"
    losses = [loss_text(told[key]) for key in ("first_loss", "last_loss", "best_loss", "validation_loss")]
    mfu, hours = told["mfu"], told["node_hours"]
    share = "-" if mfu is None else f"{mfu:.1%}"
    return [
        step,
        *losses,
        count_text(told["tokens_per_second"]),
        share,
        "-" if hours is None else f"{hours:.3g}",
    ]


def _write(path: Path, group: Group, found: Sequence[Result], best: Result | None) -> None:
    """The same as comma-separated values, with a line of names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *group.keys, "state", *NUMBERS, "best"])
    for each in found:
        values = [value_text(value) for value in each.values.values()]
        numbers = ["" if each.numbers[key] is None else each.numbers[key] for key in NUMBERS]
        writer.writerow([each.run, *values, each.state, *numbers, int(each is best)])
    try:
        write_whole(path, text.getvalue())
    except OSError as error:
        raise UsageError(f"--csv {path} cannot be written: {error.strerror or error}") from None
