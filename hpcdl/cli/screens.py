"""What ``hpcdl list`` and ``status`` show of runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hpcdl.cli import failing, render, slowness
from hpcdl.run_folder import RunFolder
from hpcdl.units import format_count


def runs(rows: Sequence[dict[str, Any]], where: object) -> None:
    """All runs as a table."""
    if not rows:
        render.plain(f"no runs in {where} yet; start one with: hpcdl submit EXP.yaml")
        return
    columns: dict[str, render.Side] = {
        "run": "left", "state": "left", "step": "right", "loss": "right", "job": "left", "site": "left",
        "decomposition": "left",
    }  # fmt: skip
    render.table(
        columns, (render.Row(_run_cells(row), styles={1: render.colour(row["state"])}) for row in rows)
    )


def _run_cells(row: dict[str, Any]) -> list[str]:
    if "states" in row:  # of a sweep
        points = f"{row['points']} points"
        return [row["run"], words(row["states"]), "-", "-", "-", row["site"], points]
    loss = "-" if row["last_loss"] is None else f"{row['last_loss']:.4f}"
    what = row["decomposition"] or shlex.join(row["command"])
    return [row["run"], row["state"], _steps(row), loss, row["job_id"] or "-", row["site"], what]


def words(states: Mapping[str, int]) -> str:
    """The points of a sweep by state: ``12 completed, 3 running``."""
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _steps(row: dict[str, Any]) -> str:
    return "-" if row["steps"] is None else f"{row['step']}/{row['steps']}"


def status(folder: RunFolder, record: dict[str, Any]) -> None:
    """One run, its attempts and its first failure."""
    reason = f"  {render.printable(record['reason'])}" if record["reason"] else ""
    render.line(f"{render.name(folder)}  {render.state(record['state'])}", reason)
    what = record["decomposition"] or shlex.join(record["command"])
    render.plain(render.printable(f"site {record['site']}, {what}, step {_steps(record)}"))
    if record["last_loss"] is not None:
        rate = format_count(record["tokens_per_second"])
        render.plain(f"loss {record['first_loss']:.4f} -> {record['last_loss']:.4f}, {rate} tokens/s")
    if use := _use(record):
        render.plain(use)
    for text in slowness.lines(record["stragglers"]):
        render.plain(text, "yellow")
    if record["validation_loss"] is not None:
        render.plain(f"validation loss {record['validation_loss']:.4f}")
    shapes = {attempt["decomposition"] for attempt in record["attempts"]}
    for attempt in record["attempts"]:
        code = "" if attempt["exit_code"] is None else f", exit code {attempt['exit_code']}"
        job = "no job" if attempt["job_id"] is None else f"job {render.quoted(attempt['job_id'])}"
        render.line(
            f"attempt {attempt['number']}: {job}, {render.state(attempt['state'])}",
            f"{code}{_shape(attempt) if len(shapes) > 1 else ''}{_waiting(attempt)}",
        )
    if words := _chain(record):
        render.plain(render.printable(words))
    if record["first_failure"]:
        first = record["first_failure"]
        device = f", device {first['device']}" if first["device"] else ""
        who = f"rank {first['rank']} on {first['host']}{device}"
        render.line("[red]first failure:[/] ", render.printable(f"{who}: {first['reason']}"))
        render.plain(f"its log: {first['log']}")
    for text, style in failing.reasons(record):
        render.plain(render.printable(text), style)
    render.plain(f"run folder: {folder.path}")


def _chain(record: dict[str, Any]) -> str:
    """Whether a run that is over goes on; nothing is said of one that was not to."""
    chain = record["chain"]
    if chain["of"] == 1 or record["state"] in ("completed", "cancelled", "prepared", "queued", "running"):
        return ""
    if chain["goes_on"]:
        return f"it goes on (hpcdl advance submits it where its job did not): {chain['reason']}"
    return f"it does not go on by itself: {chain['reason']}"


def _shape(attempt: dict[str, Any]) -> str:
    return f", {attempt['decomposition']}"


def _waiting(attempt: dict[str, Any]) -> str:
    if not attempt["wait"]:
        return ""
    return f", {'waits' if attempt['state'] == 'queued' else 'waited'} {attempt['wait']}"


def _use(record: dict[str, Any]) -> str:
    """How well rank 0 uses its device; empty where nothing is known."""
    parts = [] if record["mfu"] is None else [f"MFU {record['mfu']:.1%}"]
    shares = sorted(record["spent"].items(), key=lambda item: -item[1])
    if shares:
        parts.append("time of rank 0: " + ", ".join(f"{name} {share:.0%}" for name, share in shares))
    return "; ".join(parts)
