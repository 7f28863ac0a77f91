"""Where questions about jobs are put: one desk a controller, shared by all who look at runs of one folder.

docs/design/014-one-question-for-all.md gives the reasons.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

from hpcdl.runs.turns import Turn, Turns
from hpcdl.schedulers.known import scheduler
from hpcdl.sites.site import Site
from hpcdl.telemetry import write_whole
from hpcdl.workflow.states.asking import Answer, Outside, pause, put

TURN_EXPIRES_S = 180.0
"""After this a turn without an answer counts as abandoned: two programs may take 60 s each."""

Jobs = Mapping[str, Path]
"""Job ids, each with the file that its script leaves at its end."""


def _ended(jobs: Jobs) -> dict[str, bool]:
    return {job_id: end.exists() for job_id, end in jobs.items()}


class Desk(Protocol):
    """Where questions to one controller are put."""

    @property
    def site(self) -> Site:
        """Whose scheduler it is."""

    def newest(self) -> Answer:
        """What was answered last."""

    def ask(self, jobs: Jobs, *, hurry: bool = False) -> Answer | None:
        """Ask about ``jobs``, and about what else is waiting to be asked.

        None if it is not the time: somebody else is asking, or, unless in a hurry, asked just now.
        """


@dataclass
class Private:
    """A desk of this process alone."""

    site: Site
    outside: Outside
    said: Answer = field(default_factory=Answer)

    def newest(self) -> Answer:
        """What was answered last."""
        return self.said

    def ask(self, jobs: Jobs, *, hurry: bool = False) -> Answer | None:
        """Ask about ``jobs``, unless that was done just now."""
        now, before = self.outside.now(), self.said
        if before.turn and not hurry and abs(now - before.asked) < pause(self.site, before.failures):
            return None
        asking = Answer(before.turn + 1, now, _ended(jobs))
        self.said = put(self.site, before, asking, self.outside)
        return self.said


class Shared:
    """A desk in a folder: whoever's turn it is asks for all, and the others read the answer.

    Where the folder can no longer be written, on a full disk say, it goes on as a private one: one may still
    see how runs stand.

    Args:
        folder: of this desk; made if it is not there.
        site: whom to ask, and how.
        outside: the world.

    Raises:
        OSError: nothing can be written there.
    """

    def __init__(self, folder: Path, site: Site, outside: Outside) -> None:
        self.site, self._outside = site, outside
        self._file, self._waiting = folder / "answer.json", folder / "jobs"
        for each in (folder / "turns", self._waiting, folder):
            each.mkdir(parents=True, exist_ok=True)
            if not os.access(each, os.W_OK):  # it may be there, and somebody else's
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), each)
        self._turns = Turns(folder / "turns")
        self._instead: Private | None = None

    def newest(self) -> Answer:
        """What was answered last, to whomever."""
        return self._instead.newest() if self._instead else self._written()

    def _written(self) -> Answer:
        try:
            return Answer.from_json(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return Answer()

    def ask(self, jobs: Jobs, *, hurry: bool = False) -> Answer | None:
        """Take the turn and ask, unless somebody is asking now or, unless in a hurry, asked just now."""
        if self._instead:
            return self._instead.ask(jobs, hurry=hurry)
        try:
            self._enrol(jobs)
            turn = self._turn(hurry=hurry)
            return self._answer(turn, jobs) if turn else None
        except OSError:
            self._instead = Private(self.site, self._outside)
            return self._instead.ask(jobs, hurry=hurry)

    def _turn(self, *, hurry: bool) -> Turn | None:
        now, last, answer = self._outside.now(), self._turns.newest(), self._written()
        going_on = last.number > answer.turn and abs(now - last.time) < TURN_EXPIRES_S
        early = last.number > 0 and abs(now - last.time) < pause(self.site, answer.failures)
        if going_on or (early and not hurry):
            return None
        return self._turns.take(max(last, Turn(answer.turn), key=lambda turn: turn.number), now)

    def _answer(self, turn: Turn, jobs: Jobs) -> Answer:
        before = self._written()
        asking = Answer(turn.number, turn.time, self._enrolled() | _ended(jobs))
        # Even if it is broken off, the turn is not left open: others would wait for it.
        answer = Answer(turn.number, failures=before.failures)
        try:
            answer = put(self.site, before, asking, self._outside)
        finally:
            if self._written().turn < turn.number:
                self._publish(turn, answer)
        self._dismiss(answer)
        return answer

    def _publish(self, turn: Turn, answer: Answer) -> None:
        """Let everybody read it; where that cannot be, the turn is given back: others would wait for it."""
        try:
            write_whole(self._file, answer.to_json())
        except OSError:
            self._turns.give_back(turn)
            self._instead = Private(self.site, self._outside, answer)

    def _enrol(self, jobs: Jobs) -> None:
        """Note jobs to be asked about: a link that leads somewhere as soon as the script has ended."""
        for job_id, end in jobs.items():
            link = self._link(job_id)
            with suppress(FileNotFoundError):
                if link.is_symlink() and link.readlink() != end:
                    link.unlink()  # of a former life of the job
            with suppress(FileExistsError):
                link.symlink_to(end)

    def _enrolled(self) -> dict[str, bool]:
        """The jobs to ask about, and whether the script of each has ended; a run may have been deleted."""
        jobs = {}
        for link in sorted(self._waiting.iterdir()):
            with suppress(FileNotFoundError):
                if link.readlink().parent.is_dir():
                    jobs[unquote(link.name)] = link.exists()
                else:
                    link.unlink()
        return jobs

    def _dismiss(self, answer: Answer) -> None:
        """Nobody asks again about jobs that are over, or unknown, unless somebody wants to know."""
        for job_id in answer.ended if not answer.error else ():
            report = answer.reports.get(job_id)
            if report is None or report.state.over:
                self._link(job_id).unlink(missing_ok=True)

    def _link(self, job_id: str) -> Path:
        return self._waiting / quote(job_id, safe="")


def desk_for(runs: Path, site: Site, job_id: str, outside: Outside) -> Desk:
    """The desk for questions about a job; a private one where nothing can be shared.

    Args:
        runs: the folder of run folders.
        site: whose scheduler it is.
        job_id: the job.
        outside: the world.
    """
    backend = scheduler(site.scheduler.kind)
    controller, program = backend.controller(job_id), backend.QUERIES[0].command([job_id])[0]
    # A machine without the scheduler's programs would only take turns from those that have them.
    if controller is not None and shutil.which(program):
        name = quote(f"{site.name} {site.scheduler.kind} {controller}".rstrip(), safe=" ")
        # Of somebody else's runs one may see the state, and asks for oneself.
        with suppress(OSError):
            return Shared(runs / ".schedulers" / name, site, outside)
    return Private(site, outside)
