"""Asking a scheduler about jobs: the question, what came back, and what that tells of a job."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hpcdl import shell
from hpcdl.errors import SchedulerError
from hpcdl.schedulers.base import JobState, Report
from hpcdl.schedulers.known import scheduler
from hpcdl.shell import Completed
from hpcdl.sites.site import Site

LONGEST_PAUSE_S = 120.0
"""Longest time between two questions that nobody answers, unless the site's own floor is longer."""


@dataclass(frozen=True)
class Outside:
    """What asking needs of the world: programs and a clock, which a test may drive."""

    run: Callable[[Sequence[str]], Completed] = shell.run
    now: Callable[[], float] = time.time  # Unix time: processes on several hosts compare it
    sleep: Callable[[float], None] = time.sleep


def at_one_moment(outside: Outside) -> Outside:
    """The same world, in which a program is not run again with the same arguments until time has passed."""
    known: dict[tuple[str, ...], Completed] = {}

    def run(command: Sequence[str]) -> Completed:
        if (key := tuple(command)) not in known:
            known[key] = outside.run(command)
        return known[key]

    def sleep(seconds: float) -> None:
        known.clear()
        outside.sleep(seconds)

    return replace(outside, run=run, sleep=sleep)


@dataclass(frozen=True)
class Answer:
    """What came of one question, for everybody who wants to know."""

    turn: int = 0  # 0: nobody has asked yet
    asked: float = 0.0  # Unix time
    ended: Mapping[str, bool] = field(default_factory=dict)
    """The jobs asked about, and whether the script of each had left its exit record before."""
    reports: Mapping[str, Report] = field(default_factory=dict)
    failures: int = 0  # questions in a row, this one included, that were not answered
    error: str = ""
    hint: str | None = None

    def tells(self, job_id: str, *, ended: bool) -> bool:
        """Whether the truth about a job follows from it.

        Args:
            job_id: the job.
            ended: whether the script's exit record is there now.
        """
        if job_id not in self.ended:
            return False
        report = self.reports.get(job_id)
        if report is not None and report.state.over:
            return True
        if ended and not self.ended[job_id]:
            return False  # the job ended after the question
        return ended or not self.error

    def to_json(self) -> str:
        """One line of JSON."""
        reports = {
            job_id: asdict(each) | {"state": each.state.value} for job_id, each in self.reports.items()
        }
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(fields | {"reports": reports}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Answer:
        """The answer that ``to_json`` wrote.

        Raises:
            ValueError, TypeError, AttributeError, KeyError: it is something else.
        """
        fields: dict[str, Any] = json.loads(text)
        reports = {job_id: _report(each) for job_id, each in fields.pop("reports").items()}
        return cls(**fields, reports=reports)


def _report(fields: dict[str, Any]) -> Report:
    return Report(**fields | {"state": JobState(fields["state"])})


def put(site: Site, before: Answer, asking: Answer, outside: Outside) -> Answer:
    """Put a question.

    Args:
        site: whom to ask, and how.
        before: the answer to the question before this one.
        asking: the turn, the time and the jobs of this one.
        outside: the world.
    """
    try:
        return replace(asking, reports=ask(site, list(asking.ended), outside))
    except SchedulerError as error:
        return replace(asking, failures=before.failures + 1, error=error.message, hint=error.hint)


def ask(site: Site, job_ids: Sequence[str], outside: Outside) -> dict[str, Report]:
    """What a scheduler says of jobs of one controller: each way of asking for what the earlier left open.

    Raises:
        SchedulerError: the first way is not answered. Where a later one is not, nobody can tell now.
    """
    reports: dict[str, Report] = {}
    first, *others = scheduler(site.scheduler.kind).QUERIES
    reports.update(first.parse(outside.run(first.command(job_ids))))
    for query in others:
        missing = [job_id for job_id in job_ids if job_id not in reports]
        if not missing or (query.accounting and not site.scheduler.accounting):
            continue
        try:
            found = query.parse(outside.run(query.command(missing)))
            reports.update(_of_the_past(found) if query.accounting else found)
        except SchedulerError as error:
            cannot_tell = Report(JobState.UNKNOWN, error.message)
            reports.update(dict.fromkeys(missing, cannot_tell))
    return reports


def _of_the_past(reports: Mapping[str, Report]) -> dict[str, Report]:
    """What accounting tells; that a job still runs it may say long after the end, of some for ever."""
    return {job_id: each if each.state.over else _forgotten(each) for job_id, each in reports.items()}


def _forgotten(report: Report) -> Report:
    return Report(JobState.UNKNOWN, f"{report.words}, by accounting alone", past=True)


def pause(site: Site, failures: int) -> float:
    """Shortest time between a question and the next, in seconds: longer, the longer nobody answers."""
    shortest = site.scheduler.poll_seconds
    return min(shortest * 2.0 ** min(failures, 30), max(shortest, LONGEST_PAUSE_S))
