"""``hpcdl report`` and ``hpcdl compare``: what runs came to, as a page or as a table."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcdl.cli import render
from hpcdl.cli.asking import refreshed
from hpcdl.cli.sweeps import groups
from hpcdl.errors import UsageError
from hpcdl.runs import store
from hpcdl.runs.reports.comparing import Figure, differing, figures, written
from hpcdl.runs.reports.recorded import Recorded, recorded
from hpcdl.units import format_bytes


def report(names: Sequence[str], runs: Path | None, output: Path | None) -> None:
    """Write one HTML file about these runs.

    Raises:
        UsageError: a run is not there or is a sweep, or the file cannot be written.
    """
    from hpcdl.runs.reports.page import page  # noqa: PLC0415 - it brings jinja2

    found = _read(names, runs)
    target = (output or _beside([each.name for each in found])).absolute()
    store.write(target, page(found, time.time()))
    render.plain(f"{target} ({format_bytes(target.stat().st_size)})")
    render.plain(f"it needs no network; open it with a browser: xdg-open {shlex.quote(str(target))}", "dim")


def _read(names: Sequence[str], runs: Path | None) -> list[Recorded]:
    where = store.runs_folder(runs)
    meant = (groups.one_run(name, where) for name in names)
    folders = list({folder.path.resolve(): folder for folder in meant}.values())
    attempts, labels = refreshed(folders), labelled([folder.path for folder in folders])
    with render.busy("reading"):
        found = [recorded(*each, time.time()) for each in zip(folders, attempts, strict=True)]
    return [replace(each, name=label) for each, label in zip(found, labels, strict=True)]


def labelled(paths: Sequence[Path]) -> list[str]:
    """What tells runs apart: their names, and whole paths of those that share one."""
    shared = Counter(path.name for path in paths)
    return [path.name if shared[path.name] == 1 else str(path) for path in paths]


def compare(names: Sequence[str], runs: Path | None, plot: Path | None, *, json: bool) -> None:
    """Show runs side by side.

    Raises:
        UsageError: fewer than two different runs, or a figure that cannot be drawn.
    """
    found = _read(names, runs)
    if len(found) < 2:
        raise UsageError(
            f"compare takes two runs or more, and {' and '.join(names)} is {found[0].name} alone",
            "hpcdl list shows the runs there are",
        )
    asked, compared = differing(found), figures(found)
    if plot is not None:
        _draw(plot, found)
    if json:
        render.print_json(_as_json(found, asked, compared))
    else:
        _show(found, asked, compared)


def _beside(names: Sequence[str]) -> Path:
    """Where a report is written if nobody says; that of several runs does not take the place of one's own."""
    others = f"-and-{len(names) - 1}-more" if len(names) > 1 else ""
    return Path(f"{Path(names[0]).name}{others}.html")


def _as_json(
    found: Sequence[Recorded], asked: dict[str, list[Any]], compared: Sequence[Figure]
) -> dict[str, Any]:
    return {
        "runs": [each.name for each in found],
        "differs": asked,
        "figures": {
            each.key: {
                "name": each.name,
                "values": each.values,
                "best": [found[place].name for place in each.best],
            }
            for each in compared
        },
    }


def _show(found: Sequence[Recorded], asked: dict[str, list[Any]], compared: Sequence[Figure]) -> None:
    """One column a run; the best of a row in green, with a star for those who see no green."""
    columns: dict[str, render.Side] = {"": "left"}
    columns.update({each.name: "right" for each in found})
    rows = [render.Row([key, *map(written, values)]) for key, values in asked.items()]
    for each in compared:
        cells = [f"{words} *" if place in each.best else words for place, words in enumerate(each.words())]
        colours = {place + 1: "bold green" for place in each.best}
        rows.append(render.Row([each.name, *cells], styles=colours))
    render.table(columns, rows)
    render.plain(
        "* best of its row; above it what was asked differently" if asked else "* best of its row", "dim"
    )


def _draw(path: Path, found: Sequence[Recorded]) -> None:
    from hpcdl.cli.plans.asking import plots  # noqa: PLC0415 - drawing is an extra

    plots(path)
    from hpcdl.cli import curves  # noqa: PLC0415 - as above

    curves.draw(path, found)
