"""``hpcdl logs``: what the ranks of a run print, as one text."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from hpcdl.cli import render
from hpcdl.cli.sweeps.groups import one_run
from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.failures.alike import spans
from hpcdl.runs.logs.reading import Follower, Line, attempts_with_logs, check_ranks
from hpcdl.runs.logs.weaving import Saying, together, woven
from hpcdl.workflow.jobs import going_on
from hpcdl.workflow.states import following

_NO_MATCH = 1  # as of grep
_LONGEST_SOURCE = 24  # letters of a list of ranks; a longer one is counted
_RANK_COLOURS = (36, 32, 33, 35, 34, 96)  # of a terminal's palette; red is for what was looked for
_FOUND, _DIM, _PLAIN = "\033[1;31m", "\033[2m", "\033[0m"


@dataclass(frozen=True)
class LogChoice:
    """Which lines of which logs, and how they are shown."""

    ranks: Sequence[int] = ()  # none: all, and the batch script
    attempt: int | None = None
    grep: str | None = None
    tail: int | None = None
    every: bool = False
    json: bool = False


def logs(run: str, runs: Path | None, choice: LogChoice, *, follow: bool) -> None:
    """Print logs, once or until the run is over.

    Raises:
        UsageError: there is no such attempt or rank, or the pattern is none.
        typer.Exit: nothing was found.
    """
    folder = one_run(run, store.runs_folder(runs))
    number = _attempt(folder, choice.attempt, follow=follow)
    ranks = store.resolved(folder, number).layout.ranks
    check_ranks(choice.ranks, ranks)
    screen = Screen(choice, ranks)
    follower = Follower(folder, number, choice.ranks, number if choice.attempt or not follow else None)
    if follow:
        try:
            for _ in _until_over(folder, choice.attempt):
                screen.show(follower)
        except KeyboardInterrupt:
            render.detached(folder)
            return
    screen.show(follower, ended=True)
    if choice.grep is not None and not screen.shown:
        raise typer.Exit(_NO_MATCH)


def _attempt(folder: RunFolder, wanted: int | None, *, follow: bool) -> int:
    """The attempt that is shown, or shown first: by default the newest that has said something.

    Raises:
        UsageError: it has no logs, and nobody waits for them.
    """
    run, known, newest = folder.path.name, attempts_with_logs(folder), store.current(folder)
    if wanted is not None and wanted not in {*known, *range(1, newest.number + 1)}:
        last = max([*known, newest.number])
        raise UsageError(f"{run} has no attempt {wanted}; its newest is {last}")
    found = wanted or max(known, default=newest.number)
    if found not in known and not follow:
        what = f"attempt {found} of {run}" if wanted else run
        raise UsageError(f"{what} has no logs ({newest.state.value})", f"see hpcdl status {run}")
    if wanted is None and found < newest.number:
        later = f"attempt {newest.number} has no logs ({newest.state.value})"
        render.warning(f"{later}: these are of attempt {found}", None)
    return found


def _until_over(folder: RunFolder, only: int | None) -> Iterator[None]:
    """Again and again, until the run, or the one attempt, is over."""
    for seen in following.attempts_of(folder) if only else going_on.attempts_of(folder):
        yield
        if only is not None and seen.number > only:
            return


def pattern_of(text: str) -> re.Pattern[str]:
    """What ``--grep`` looks for.

    Raises:
        UsageError: it is no regular expression, with the place where it goes wrong.
    """
    try:
        return re.compile(text)
    except re.error as error:
        where = "" if error.pos is None else f" (at {text[error.pos :][:20]!r}, letter {error.pos + 1})"
        raise UsageError(
            f"--grep {text!r} is no regular expression of Python: {error.msg}{where}",
            f"for these very letters: --grep '{re.escape(text)}'",
        ) from None


class Screen:
    """Where lines are shown, each behind who said it.

    Args:
        choice: which lines, and how.
        ranks: how many the first attempt has.

    Raises:
        UsageError: the pattern is no regular expression.
    """

    def __init__(self, choice: LogChoice, ranks: int) -> None:
        self._choice = choice
        self._pattern = None if choice.grep is None else pattern_of(choice.grep)
        self._coloured = render.coloured() and not choice.json
        self._ranks = ranks
        self._tail = choice.tail
        self._attempt: int | None = None
        self.shown = 0

    def show(self, follower: Follower, *, ended: bool = False) -> None:
        """Show what came since the last look, in the order of time."""
        lines = woven(tail.new_lines(ended=ended) for tail in follower.tails())
        found = (line for line in lines if self._pattern is None or self._pattern.search(line.text))
        sayings = map(_alone, found) if self._choice.every or self._choice.json else together(found)
        for saying in self._last(sayings):
            self._write(saying)
            self.shown += 1
        sys.stdout.flush()

    def _last(self, sayings: Iterable[Saying]) -> Iterable[Saying]:
        """Of the first look only so many as are wanted."""
        if self._tail is None:
            return sayings
        count, self._tail = self._tail, None
        return deque(sayings, maxlen=count)

    def _write(self, saying: Saying) -> None:
        line = saying.line
        if self._choice.json:
            sys.stdout.write(render.json_text(asdict(line)) + "\n")
            return
        if self._attempt not in (None, line.attempt):
            self._put("hpcdl", _DIM, f"attempt {line.attempt} begins")
        self._attempt = line.attempt
        colour = f"\033[{_RANK_COLOURS[min(saying.ranks) % len(_RANK_COLOURS)]}m" if saying.ranks else _DIM
        self._put(self._source(saying), colour, self._marked(line.text))

    def _put(self, source: str, colour: str, text: str) -> None:
        padded = f"{source:>8} |"
        sys.stdout.write(f"{colour}{padded}{_PLAIN} {text}\n" if self._coloured else f"{padded} {text}\n")

    def _source(self, saying: Saying) -> str:
        if not saying.ranks:
            return "job"
        named = spans(saying.ranks)
        return named if len(named) <= _LONGEST_SOURCE else f"{len(saying.ranks)} of {self._ranks} ranks"

    def _marked(self, text: str) -> str:
        if self._pattern is None or not self._coloured:
            return text
        return self._pattern.sub(lambda match: f"{_FOUND}{match[0]}{_PLAIN}" if match[0] else "", text)


def _alone(line: Line) -> Saying:
    return Saying(line, set() if line.rank is None else {line.rank})
