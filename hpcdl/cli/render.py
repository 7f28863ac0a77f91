"""Showing results on a terminal: the only module that imports rich."""

from __future__ import annotations

import json
import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

import yaml
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.logs import Line, last_lines
from hpcdl.runs.metrics import Progress, planned_step_seconds
from hpcdl.runs.record import Attempt
from hpcdl.sites.site import Site
from hpcdl.units import format_count, format_seconds
from hpcdl.workflow import Snapshot, Study

# A pipe has no width: nothing is folded or cut for it.
_PIPE_WIDTH = 200
_WIDEST = 10_000  # columns that a table may take


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_PIPE_WIDTH)


_out = _console()
_err = _console(stderr=True)

# Green went well, red did not, yellow waits for somebody, cyan is at work.
_COLOURS = {
    "completed": "green",
    "running": "cyan",
    "queued": "yellow",
    "prepared": "yellow",
    "cancelled": "dim",
}
_LOG_TAIL = 20


def line(markup: str) -> None:
    """Print one line of rich markup."""
    _out.print(markup)


def warning(message: str, hint: str | None) -> None:
    """Something that will matter later, on standard error."""
    _err.print(f"[yellow]note:[/] {escape(message)}")
    if hint:
        _err.print(f"  {escape(hint)}")


Side = Literal["left", "right"]


class Row(NamedTuple):
    """One row of a table, perhaps in a colour."""

    cells: Sequence[str]
    style: str | None = None


def table(columns: Mapping[str, Side], rows: Iterable[Row]) -> None:
    """Print rows under the names of their columns; cells are plain text.

    None is cut on a narrow terminal, which folds the lines itself: half a number is a wrong one.
    """
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name, side in columns.items():
        drawn.add_column(name, justify=side, no_wrap=True)
    for row in rows:
        drawn.add_row(*map(escape, row.cells), style=row.style)
    drawn.width = Measurement.get(_out, _out.options.update_width(_WIDEST), drawn).maximum
    _out.print(drawn, crop=False)


def plain(words: str, style: str | None = None) -> None:
    """Print plain text, perhaps in a colour."""
    _out.print(escape(words), style=style)


def print_json(value: Any) -> None:
    """Print one JSON value (a string is taken as JSON already)."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    sys.stdout.write(text.rstrip("\n") + "\n")


@contextmanager
def busy(what: str) -> Iterator[None]:
    """A spinner on a terminal while something short runs."""
    with _err.status(what):
        yield


@contextmanager
def progress_of(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that tells how many of how many are done, from when it first does."""
    with ExitStack() as stack:
        bar = cache(lambda: stack.enter_context(_bar(what)))

        def update(done: int, total: int) -> None:
            bar()(done, total)

        yield update


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import Progress as Bars  # noqa: PLC0415 - takes longer to import than a plan to make

    with Bars(console=_err, transient=True, disable=not _err.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _state(state: str) -> str:
    return f"[{_COLOURS.get(state, 'red')}]{escape(state)}[/]"


# --- submitting and following --------------------------------------------------------------------


def submitted(study: Study, folder: RunFolder, job_id: str) -> None:
    """What was submitted, and where."""
    ranks = study.layout.ranks
    on = f" on {ranks} ranks" if ranks > 1 else ""
    _out.print(f"running [bold]{study.decomposition}[/]{on}")
    _out.print(f"submitted [bold]{folder.path.name}[/] as job {escape(job_id)} on {study.site.name}")
    _out.print(f"run folder: {escape(str(folder.path))}")


def next_commands(folder: RunFolder, verbs: Sequence[str]) -> None:
    """What one would type next."""
    runs = folder.path.parent
    where = "" if runs == store.runs_folder(None) else f" --runs {shlex.quote(str(runs))}"
    for verb in verbs:
        word, _, flags = verb.partition(" ")
        _out.print(escape(f"  hpcdl {word} {folder.path.name} {flags}".rstrip() + where), style="bold")


def detached(folder: RunFolder) -> None:
    """After Ctrl-C: the job goes on."""
    _out.print(f"\ndetached: [bold]{folder.path.name}[/] goes on; to look again or to end it:")
    next_commands(folder, ("status", "logs --follow", "cancel"))


def follow(snapshots: Iterator[Snapshot], *, quiet: bool) -> Snapshot:
    """Show a run until it is over; returns the last snapshot."""
    if quiet:
        return deque(snapshots, maxlen=1).pop()
    return _follow_bar(snapshots) if _out.is_terminal else _follow_lines(snapshots)


def _follow_bar(snapshots: Iterator[Snapshot]) -> Snapshot:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
    from rich.progress import Progress as Bars  # noqa: PLC0415 - as above

    state, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
    columns = (state, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Bars(*columns, console=_out) as bars:
        task = bars.add_task("queued", total=None, rate="")
        for last in snapshots:
            bars.update(
                task,
                total=last.steps,
                completed=last.progress.step,
                rate=_rate(last),
                description=_state(last.attempt.state.value),
            )
    return last


def _follow_lines(snapshots: Iterator[Snapshot]) -> Snapshot:
    """Without a terminal: a line when the state changes and at every twentieth of the way."""
    shown = ("", -1)
    for last in snapshots:
        part = 20 * last.progress.step // last.steps
        if shown != (now := (last.attempt.state.value, part)):
            _out.print(f"{now[0]}  step {last.progress.step}/{last.steps}  {_rate(last)}".rstrip())
            shown = now
    return last


def _rate(snapshot: Snapshot) -> str:
    done = snapshot.progress
    if done.last_loss is None or done.tokens_per_second is None:
        return ""
    return f"loss {done.last_loss:.4f}  {format_count(done.tokens_per_second)} tokens/s"


def summary(folder: RunFolder, last: Snapshot) -> None:
    """How a completed run went."""
    done = last.progress
    _out.print(f"[green]completed[/] {done.step} steps, {format_seconds(done.seconds)} of training")
    if done.first_loss is not None and done.last_loss is not None and done.tokens_per_second is not None:
        _out.print(f"loss {done.first_loss:.4f} -> [bold]{done.last_loss:.4f}[/]")
        _out.print(f"{format_count(done.tokens_per_second)} tokens/s, {_step_time(folder, done)}")
    _out.print(f"run folder: {escape(str(folder.path))}")
    _out.print("next, try:")
    next_commands(folder, ("status", "logs --rank 0", "collect"))


def failure(folder: RunFolder, attempt: Attempt) -> None:
    """The last words of the rank that failed first, or of the job."""
    culprit = store.culprit(folder, attempt)
    path = (
        folder.job_log(attempt.number) if culprit is None else folder.rank_log(attempt.number, culprit.rank)
    )
    lines = last_lines(path, _LOG_TAIL)
    if lines:
        _err.print(f"[red]last lines of {escape(str(path))}[/]")
        for text in lines:
            _err.print(f"  {escape(text)}")


def _step_time(folder: RunFolder, done: Progress) -> str:
    """The measured step beside the planned one: a planner must show how far it was off."""
    measured = f"{format_seconds(done.step_seconds or 0)} a step"
    planned = planned_step_seconds(folder)
    return measured if planned is None else f"{measured} (planned {format_seconds(planned)})"


# --- runs ----------------------------------------------------------------------------------------


def runs(rows: Sequence[dict[str, Any]], where: object) -> None:
    """All runs as a table."""
    if not rows:
        _out.print(f"no runs in {escape(str(where))} yet; start one with: hpcdl submit EXP.yaml")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "state", "site", "decomposition", "job", "step", "loss"):
        table.add_column(name, justify="right" if name in ("step", "loss") else "left", overflow="fold")
    for row in rows:
        table.add_row(
            row["run"],
            _state(row["state"]),
            row["site"],
            row["decomposition"],
            escape(str(row["job_id"] or "-")),
            f"{row['step']}/{row['steps']}",
            "-" if row["last_loss"] is None else f"{row['last_loss']:.4f}",
        )
    _out.print(table)


def status(folder: RunFolder, record: dict[str, Any]) -> None:
    """One run, its attempts and its first failure."""
    _out.print(f"[bold]{record['run']}[/]  {_state(record['state'])}  {escape(record['reason'])}")
    _out.print(f"site {record['site']}, {record['decomposition']}, step {record['step']}/{record['steps']}")
    if record["last_loss"] is not None:
        rate = format_count(record["tokens_per_second"])
        _out.print(f"loss {record['first_loss']:.4f} -> {record['last_loss']:.4f}, {rate} tokens/s")
    if use := _use(record):
        _out.print(use)
    if record["validation_loss"] is not None:
        _out.print(f"validation loss {record['validation_loss']:.4f}")
    for number, attempt in enumerate(record["attempts"], start=1):
        code = "" if attempt["exit_code"] is None else f", exit code {attempt['exit_code']}"
        _out.print(
            f"attempt {number}: job {escape(str(attempt['job_id']))}, {_state(attempt['state'])}{code}"
        )
    if record["first_failure"]:
        first = record["first_failure"]
        _out.print(
            f"[red]first failure:[/] rank {first['rank']} on {first['host']}: {escape(first['reason'])}"
        )
        _out.print(f"its log: {escape(first['log'])}")
    _out.print(f"run folder: {escape(str(folder.path))}")


def _use(record: dict[str, Any]) -> str:
    """How well rank 0 uses its device; empty where nothing is known."""
    parts = [] if record["mfu"] is None else [f"MFU {record['mfu']:.1%}"]
    shares = sorted(record["spent"].items(), key=lambda item: -item[1])
    if shares:
        parts.append("time of rank 0: " + ", ".join(f"{name} {share:.0%}" for name, share in shares))
    return "; ".join(parts)


def log_lines(lines: Iterable[Line]) -> None:
    """Log lines, each after the rank it came from."""
    for each in lines:
        source = "job" if each.rank is None else f"rank {each.rank}"
        sys.stdout.write(f"{source:>8} | {each.text}\n")
    sys.stdout.flush()


# --- sites ---------------------------------------------------------------------------------------


def sites(rows: Sequence[dict[str, Any]]) -> None:
    """Known machines as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("site", "scheduler", "devices a node", "partitions", "status", "verified"):
        table.add_column(name, overflow="fold")
    for row in rows:
        devices = f"{row['devices_per_node']} x {row['device']}"
        partitions = ", ".join(row["partitions"])
        table.add_row(
            row["name"], row["scheduler"], devices, partitions, row["status"], row["last_verified"] or "-"
        )
    _out.print(table)


def site(chosen: Site) -> None:
    """One machine as YAML: what its file says."""
    text = yaml.safe_dump(
        chosen.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True
    )
    sys.stdout.write(text)
