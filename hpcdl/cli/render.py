"""Showing results on a terminal: the only module that imports rich."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from hpcdl.cli import failing
from hpcdl.errors import EngineError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.failures.diagnosis import diagnose
from hpcdl.runs.metrics import Progress, planned_step_seconds, progress, steps
from hpcdl.runs.record import Attempt
from hpcdl.runs.shapes import since
from hpcdl.schedulers.explain import Line as ScriptLine
from hpcdl.units import format_count, format_seconds, sayable
from hpcdl.workflow.states.following import Snapshot

if TYPE_CHECKING:  # it brings the planner, which takes longer to load than a thousand runs to list
    from hpcdl.workflow.studies.studying import Study

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
# A pipe has no width: nothing is folded or cut for it.
_PIPE_WIDTH = 100_000


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A terminal that shows words as they are: numbers without colours, ``:x:`` as three letters."""
    return Console(stderr=stderr, width=width, highlight=False, emoji=False)


def _stream(*, stderr: bool = False) -> Console:
    terminal = console(stderr=stderr)
    return terminal if terminal.is_terminal else console(stderr=stderr, width=_PIPE_WIDTH)


_out = _stream()
_err = _stream(stderr=True)

# Green went well, red did not, yellow waits for somebody, cyan is at work.
_COLOURS = {
    "completed": "green",
    "running": "cyan",
    "queued": "yellow",
    "prepared": "yellow",
    "paused": "yellow",
    "cancelled": "dim",
}


def coloured() -> bool:
    """Whether standard output shows colours."""
    return _out.is_terminal and not _out.no_color and _out.color_system is not None


def line(markup: str, words: str = "") -> None:
    """Print one line: rich markup, and plain text behind it."""
    _out.print(Text.from_markup(markup, emoji=False).append(words))


def warning(message: str, hint: str | None) -> None:
    """Something that will matter later, on standard error."""
    _err.print(Text.assemble(("note:", "yellow"), f" {message}"))
    if hint:
        _err.print(Text(f"  {hint}"))


Side = Literal["left", "right"]


class Row(NamedTuple):
    """One row of a table, perhaps in a colour, perhaps with some columns in colours of their own."""

    cells: Sequence[str]
    style: str | None = None
    styles: Mapping[int, str] = MappingProxyType({})


def table(columns: Mapping[str, Side], rows: Iterable[Row]) -> None:
    """Print rows under the names of their columns; cells are plain text.

    None is cut on a narrow terminal, which folds the lines itself: half a number is a wrong one.
    """
    whole = [_on_one_line(row) for row in (Row(tuple(columns), "bold"), *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*(row.cells for row in whole), strict=True)]
    places = list(zip(widths, columns.values(), strict=True))
    with _out:  # one write for all
        for row in whole:
            _out.print(_aligned(row, places), soft_wrap=True)


def _on_one_line(row: Row) -> Row:
    """An argument of a command may be a whole program."""
    return row._replace(cells=[cell if cell.isprintable() else printable(cell) for cell in row.cells])


def printable(text: str) -> str:
    """Text on one line, without what would move the cursor."""
    return _UNPRINTABLE.sub(" ", text)


def quoted(text: str) -> str:
    """What a program or a scheduler said, as markup on one line."""
    return escape(printable(text))


def _aligned(row: Row, places: Sequence[tuple[int, Side]]) -> Text:
    line = Text(style=row.style or "")
    for place, (cell, (width, side)) in enumerate(zip(row.cells, places, strict=True)):
        space = " " * (width - cell_len(cell))
        line.append("  " if place else "")
        line.append(space + cell if side == "right" else cell + space, row.styles.get(place))
    line.rstrip()
    return line


def plain(words: str, style: str = "") -> None:
    """Print plain text, perhaps in a colour."""
    _out.print(Text(words, style))


def raw(text: str) -> None:
    """Print text as it is, for a file or a pipe."""
    sys.stdout.write(text)


def print_json(value: Any) -> None:
    """Print one JSON value; numbers that are not finite, for which JSON has no form, as words."""
    sys.stdout.write(json_text(sayable(value), indent=2) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON in letters that standard output has."""
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    return json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False)


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


def colour(state: str) -> str:
    """That of a run's state."""
    return _COLOURS.get(state, "red")


def state(state: str) -> str:
    """A run's state as markup, in its colour."""
    return f"[{colour(state)}]{escape(state)}[/]"


def name(folder: RunFolder) -> str:
    """A run's name as markup."""
    return f"[bold]{escape(folder.path.name)}[/]"


# --- submitting and following --------------------------------------------------------------------


def submitted(study: Study, attempts: Mapping[RunFolder, Attempt]) -> None:
    """What was submitted, and where."""
    ranks = study.layout.ranks
    on = f" on {ranks} ranks" if ranks > 1 else ""
    line(f"running [bold]{escape(study.what)}[/]{on}")
    for folder, attempt in attempts.items():
        line(f"submitted {name(folder)}", f" as job {attempt.job_id} on {study.site.name}")
    first = next(iter(attempts.values()))
    if first.wait:
        plain(f"waits {first.wait}")
    if first.expected_start:
        plain(f"expected to start: {first.expected_start}")
    for folder in attempts:
        plain(f"run folder: {folder.path}")


def origins(lines: Iterable[ScriptLine]) -> None:
    """The lines of a script, each above who asked for it and where."""
    for each in lines:
        told = ", ".join(filter(None, (str(each.origin), each.place, each.note)))
        _out.print(Text(each.text), soft_wrap=True)
        _out.print(Text(f"    {told}", "dim"), soft_wrap=True)


def next_commands(folder: RunFolder, verbs: Sequence[str]) -> None:
    """What one would type next."""
    runs = folder.path.parent
    where = "" if runs == store.runs_folder(None) else f" --runs {shlex.quote(str(runs))}"
    for verb in verbs:
        word, _, flags = verb.partition(" ")
        plain(f"  hpcdl {word} {folder.path.name} {flags}".rstrip() + where, "bold")


def detached(folder: RunFolder) -> None:
    """After Ctrl-C: the job goes on."""
    line(f"\ndetached: {name(folder)} goes on; to look again or to end it:")
    next_commands(folder, ("status", "logs --follow", "cancel"))


def follow(snapshots: Iterator[Snapshot], *, quiet: bool) -> Snapshot:
    """Show a run until it is over; returns the last snapshot."""
    if quiet:
        return deque(snapshots, maxlen=1).pop()
    return _follow_bar(snapshots) if _out.is_terminal else _follow_lines(snapshots)


def _follow_bar(snapshots: Iterator[Snapshot]) -> Snapshot:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
    from rich.progress import Progress as Bars  # noqa: PLC0415 - as above

    what, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
    columns = (what, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Bars(*columns, console=_out) as bars:
        task = bars.add_task("queued", total=None, rate="")
        for last in snapshots:
            bars.update(
                task,
                total=last.steps,
                completed=last.lately.step,
                rate=_rate(last),
                description=state(last.attempt.state.value),
            )
    return last


def _follow_lines(snapshots: Iterator[Snapshot]) -> Snapshot:
    """Without a terminal: a line when the state changes and at every twentieth of the way."""
    shown = ("", -1)
    for last in snapshots:
        part = 20 * last.lately.step // last.steps if last.steps else 0
        if shown != (now := (last.attempt.state.value, part)):
            done = f"step {last.lately.step}/{last.steps}" if last.steps else ""
            plain(f"{now[0]}  {done}  {_rate(last)}".rstrip())
            shown = now
    return last


def _rate(snapshot: Snapshot) -> str:
    done = snapshot.lately
    if done.last_loss is None or done.tokens_per_second is None:
        return ""
    return f"loss {done.last_loss:.4f}  {format_count(done.tokens_per_second)} tokens/s"


def summary(folder: RunFolder, last: Snapshot) -> None:
    """How a completed run went."""
    done = progress(steps(folder), since(store.events(folder)))
    trained = f"{done.step} steps, {format_seconds(done.seconds)} of training"
    line("[green]completed[/] ", trained if last.steps else folder.path.name)
    if done.first_loss is not None and done.last_loss is not None and done.tokens_per_second is not None:
        line(f"loss {done.first_loss:.4f} -> [bold]{done.last_loss:.4f}[/]")
        plain(f"{format_count(done.tokens_per_second)} tokens/s, {_step_time(folder, done)}")
    plain(f"run folder: {folder.path}")
    plain("next, try:")
    next_commands(folder, ("status", "report", "logs --rank 0", "collect"))


def ended_badly(folder: RunFolder, attempt: Attempt) -> EngineError:
    """Show the last words of the ranks of a run that failed; returns what is to be said of it then."""
    for text, style in failing.last_words(folder, attempt, diagnose(folder, attempt)):
        _err.print(Text(printable(text), style))
    why = printable(attempt.reason) or "no reason given"
    return EngineError(f"{folder.path.name} {attempt.state.value}: {why}")


def _step_time(folder: RunFolder, done: Progress) -> str:
    """The measured step beside the planned one: a planner must show how far it was off."""
    measured = f"{format_seconds(done.step_seconds or 0)} a step"
    planned = planned_step_seconds(folder)
    return measured if planned is None else f"{measured} (planned {format_seconds(planned)})"
