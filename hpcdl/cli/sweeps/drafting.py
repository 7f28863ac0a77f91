"""``hpcdl submit --dry-run`` of a sweep: its points and the scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from hpcdl.cli import render
from hpcdl.cli.submitting import Ask
from hpcdl.cli.sweeps.submitting import Drafts, drafted
from hpcdl.runs import store
from hpcdl.runs.sweeps import groups
from hpcdl.schedulers.base import Job
from hpcdl.spec.points import value_text
from hpcdl.units import format_seconds, ranges
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.studies import preparing
from hpcdl.workflow.sweeps.arrays import Batch
from hpcdl.workflow.sweeps.sweeping import Swept


def show(ask: Ask, runs: Path | None, *, json: bool) -> None:
    """Print the points a submission would make, and the scripts it would use.

    Raises:
        InfeasibleError: points cannot run, and are not to be skipped.
    """
    swept, drafts, _ = drafted(ask, store.runs_folder(runs))
    kinds = _kinds(drafts)
    if json:
        render.print_json({"points": _points(swept), "jobs": [_job(*each) for each in drafts]})
        return
    _table(swept)
    for batches, work in kinds.values():
        typer.echo(f"\n--- {_which(batches)} ---")
        script = preparing.render(work)
        typer.echo(script, nl=False)
        if said := submitting.judgement(script, swept.site):
            render.warning(said, None)


def _kinds(drafts: Drafts) -> dict[str, tuple[list[Batch], Job]]:
    """Batches whose scripts say the same but for folders and numbers, with the job of the first."""
    found: dict[str, tuple[list[Batch], Job]] = {}
    first = drafts[0][1]
    for batch, work in drafts:
        run = work.run.model_copy(update={"run": first.run.run})
        text = preparing.render(replace(work, folder=first.folder, run=run, array=None))
        found.setdefault(text, ([], work))[0].append(batch)
    return found


def _numbers(batch: Batch) -> list[int]:
    return [groups.number(member.folder.path.name) for member in batch]


def _which(batches: Sequence[Batch]) -> str:
    """``points 0-999, an array; point 1000, a job``."""
    arrays = [f"points {ranges(_numbers(batch))}, an array" for batch in batches if len(batch) > 1]
    alone = [number for batch in batches if len(batch) == 1 for number in _numbers(batch)]
    jobs = {0: [], 1: [f"point {ranges(alone)}, a job"]}
    return "; ".join([*arrays, *jobs.get(len(alone), [f"points {ranges(alone)}, a job each"])])


def _job(batch: Batch, work: Job) -> dict[str, Any]:
    return {"points": _numbers(batch), "array": work.array is not None, "script": preparing.render(work)}


def _points(swept: Swept) -> list[dict[str, Any]]:
    return [
        {
            "point": dict(each.values),
            "what": each.study.what,
            "nodes": each.study.layout.nodes,
            "ranks": each.study.layout.ranks,
            "step_seconds": each.study.plan.best.step_seconds if each.study.plan else None,
        }
        for each in swept.feasible
    ]


def _table(swept: Swept) -> None:
    keys = list(swept.feasible[0].values)
    columns: dict[str, render.Side] = {
        "point": "right", **dict.fromkeys(keys, "right"), "runs": "left", "nodes": "right", "ranks": "right",
        "step": "right",
    }  # fmt: skip
    rows = []
    for number, told in enumerate(_points(swept)):
        step = "-" if told["step_seconds"] is None else format_seconds(told["step_seconds"])
        values = [value_text(value) for value in told["point"].values()]
        rows.append(
            render.Row([str(number), *values, told["what"], str(told["nodes"]), str(told["ranks"]), step])
        )
    render.table(columns, rows)
