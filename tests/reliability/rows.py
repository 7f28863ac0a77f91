"""Scenarios, what was observed of each, and the page that tells it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from textwrap import fill
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
MODULES = ("ranks", "slurm", "limits", "world", "pbs")
"""In which order their scenarios stand in the tables."""
WIDTH = 110
HEAD = ("what happens", "state", "who", "exit code", "cause", "steps lost", "then")


@dataclass(frozen=True)
class Scenario:
    """Something that happens to a run.

    Args:
        table: of the page, where it stands.
        fault: what happens, in a few words.
        done: how it was made to happen.
    """

    table: str
    fault: str
    done: str

    @property
    def file(self) -> str:
        """Where its row is kept."""
        return f"{self.table}-{re.sub('[^a-z0-9]+', '-', self.fault.lower()).strip('-')}.json"


SCENARIOS: dict[Callable[..., None], Scenario] = {}
"""Of each test the scenario that it plays, in the order of the page."""


def scenario(table: str, fault: str, done: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Say what a test makes happen."""

    def register(test: Callable[..., None]) -> Callable[..., None]:
        SCENARIOS[test] = Scenario(table, fault, done)
        return test

    return register


@dataclass(frozen=True)
class Row:
    """What was observed; nothing in it depends on the hour or on the machine.

    Args:
        state: of the run when the fault had done its work.
        who: the rank that is blamed.
        exit_code: of the attempt.
        cause: its kind.
        lost: how many of the steps that were done had to be done again.
        then: how the run came to its end, and its curve.
    """

    state: str
    who: str
    exit_code: str
    cause: str
    lost: str
    then: str

    def line(self, scenario: Scenario) -> str:
        """Its line in the table."""
        return f"| {' | '.join((scenario.fault, *asdict(self).values()))} |"


def keep(folder: Path, scenario: Scenario, row: Row) -> None:
    """Write a row down."""
    (folder / scenario.file).write_text(json.dumps(asdict(scenario) | asdict(row), indent=1) + "\n")


def kept(folder: Path) -> dict[str, Row]:
    """The rows that were written down, by the file of their scenario."""
    found = {}
    for path in folder.glob("*.json"):
        fields: dict[str, Any] = json.loads(path.read_text())
        found[path.name] = Row(**{name: fields[name] for name in Row.__dataclass_fields__})
    return found


def rendered(page: str, rows: Mapping[str, Row]) -> str:
    """The page with its tables anew; of a scenario that was not played the line that is there stays."""
    for name in MODULES:
        import_module(f"test_reliability_{name}")
    for table in ("Slurm", "PBS"):
        before, _, after = page.split(_mark(table))
        lines = "".join(f"{line}\n" for line in _lines(table, page, rows))
        page = _mark(table).join([before, lines, after])
    return page


def _mark(table: str) -> str:
    """What stands before and behind a table."""
    return f"<!-- {table} -->\n"


def _lines(table: str, page: str, rows: Mapping[str, Row]) -> list[str]:
    found = [(test, each) for test, each in SCENARIOS.items() if each.table == table]
    found.sort(key=lambda pair: MODULES.index(pair[0].__module__.removeprefix("test_reliability_")))
    played = [each for _, each in found]
    lines = [rows[each.file].line(each) if each.file in rows else line_of(each, page) for each in played]
    head = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    return ["", *head, *filter(None, lines), "", *map(_told, played), ""]


def _told(scenario: Scenario) -> str:
    return fill(f"- **{scenario.fault}**: {scenario.done}", WIDTH, subsequent_indent="  ")


def line_of(scenario: Scenario, page: str) -> str:
    """The line of a scenario in the page; empty if there is none."""
    lines = page.split(_mark(scenario.table))[1].splitlines()
    return next((line for line in lines if line.startswith(f"| {scenario.fault} |")), "")
