"""``hpcdl submit`` and ``hpcdl resume``: everything that ends in a watched or unwatched job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from hpcdl.cli import render
from hpcdl.cli.asking import refreshed
from hpcdl.cli.plans import tables
from hpcdl.errors import EngineError, InfeasibleError, UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.record import Attempt, RunState
from hpcdl.schedulers.base import Job
from hpcdl.schedulers.environment import undecided
from hpcdl.schedulers.explain import Line
from hpcdl.sites.site import Site
from hpcdl.workflow.claiming import check_over
from hpcdl.workflow.jobs import going_on, submitting
from hpcdl.workflow.studies import chaining, preparing, studying
from hpcdl.workflow.studies.repeating import Queueing
from hpcdl.workflow.studies.reshaping import Change, Reshaped, draft, reshaped


@dataclass(frozen=True)
class Ask:
    """What is to be submitted, how often, and after what."""

    request: studying.Request
    after: str | None = None
    repeat: int | None = None
    at_once: int | None = None
    skip_infeasible: bool = False


class Watch(Enum):
    """How long a submitting command stays."""

    NO = "no"
    WAIT = "wait"
    FOLLOW = "follow"

    @classmethod
    def chosen(cls, *, wait: bool, follow: bool) -> Watch:
        """From the two flags; following includes waiting."""
        return cls.FOLLOW if follow else cls.WAIT if wait else cls.NO


def _study(ask: Ask) -> studying.Study:
    if ask.skip_infeasible:
        raise UsageError("--skip-infeasible leaves out points of a sweep, and this is one experiment")
    study = studying.study(ask.request)
    if study.plan:
        tables.warnings(study.plan)
        if study.plan.infeasible:
            raise InfeasibleError(study.plan.infeasible)
    return study


def queueing(ask: Ask, site: Site, runs: Path) -> Queueing:
    """How what is asked for goes into the queue of a site."""
    awaited = None if ask.after is None else chaining.awaited(ask.after, runs, site)
    return Queueing(awaited, ask.repeat, ask.at_once)


def show_script(ask: Ask, runs: Path | None, *, json: bool) -> None:
    """Print the script a submission would use.

    Raises:
        UsageError: as JSON.
    """
    if json:
        raise UsageError("--dry-run prints a script, not JSON", "add --explain for the origin of its lines")
    _, work = _drafted(ask, runs)
    _show(work)


def show_origins(ask: Ask, runs: Path | None, *, dry_run: bool, json: bool) -> None:
    """Print why each line of that script stands there.

    Raises:
        UsageError: not as a dry run.
    """
    if not dry_run:
        raise UsageError("--explain shows a script that is not submitted", "add --dry-run")
    study, work = _drafted(ask, runs)
    lines = preparing.explained(work, study)
    if json:
        render.print_json([_origin(line) for line in lines])
    else:
        render.origins(lines)


def _origin(line: Line) -> dict[str, str]:
    return {
        "line": line.kind,
        "text": line.text,
        "origin": line.origin.kind,
        "key": line.origin.key,
        "place": line.place,
        "note": line.note,
    }


def _drafted(ask: Ask, runs: Path | None) -> tuple[studying.Study, Job]:
    """What would be submitted, with nothing written."""
    study = _study(ask)
    where = store.runs_folder(runs)
    how = queueing(ask, study.site, where)
    preparing.check_ready(study, how)
    work = preparing.draft(study, where, how)
    _warn_of_left_out(work)
    return study, work


def _warn_of_left_out(work: Job) -> None:
    for words in undecided(work):
        render.warning(words, None)


def submit(ask: Ask, runs: Path | None, *, watch: Watch, json: bool) -> None:
    """Plan, prepare and submit; then watch as asked.

    Raises:
        UsageError: several runs are to be followed.
        EngineError: a run that was watched did not complete.
    """
    if watch is Watch.FOLLOW and ask.repeat is not None:
        raise UsageError("--follow shows one run, not --repeat", "use --wait, or hpcdl logs RUN --follow")
    with render.busy("planning"):
        study = _study(ask)
    where = store.runs_folder(runs)
    how = queueing(ask, study.site, where)
    _warn_of_left_out(preparing.draft(study, where, how))
    folders = preparing.prepare(study, where, how)
    job_ids = submitting.submit(folders, awaited=how.awaited)
    if not json:
        render.submitted(study, {folder: store.current(folder) for folder in folders})
    if watch is Watch.NO and not json:
        render.next_commands(folders[0], ("status", "logs --follow", "cancel"))
    _stay(folders, watch, quiet=json)
    if json:
        records = [_submitted(*each) for each in zip(folders, job_ids, strict=True)]
        render.print_json(records if ask.repeat is not None else records[0])


@dataclass(frozen=True)
class Again:
    """What is resumed, and what is to be different from now on."""

    run: str
    runs: Path | None
    wanted: Change

    def read(self) -> tuple[RunFolder, Reshaped | None]:
        """The run, and the shape in which it goes on if that is a new one.

        Raises:
            UsageError, SiteError, InfeasibleError: it cannot go on so.
        """
        folder = store.find(self.run, store.runs_folder(self.runs))
        new = reshaped(folder, self.wanted) if self.wanted else None
        if new and new.study.plan:
            tables.warnings(new.study.plan)
        return folder, new


def show_next(again: Again, *, json: bool) -> None:
    """Print the script that ``resume`` would use.

    Raises:
        UsageError: as JSON, or there will be no next one.
    """
    if json:
        raise UsageError("--dry-run prints a script, not JSON")
    folder, new = again.read()
    check_over(folder, *refreshed([folder]))
    work = draft(folder, new)
    _warn_of_left_out(work)
    _show(work)


def _show(work: Job) -> None:
    """A script, and what the scheduler says to it if it is at hand."""
    script = preparing.render(work)
    typer.echo(script, nl=False)
    if said := submitting.judgement(script, work.site):
        render.warning(said, None)


def resume(again: Again, *, watch: Watch, json: bool) -> None:
    """Submit another attempt of a run; then watch as asked.

    Raises:
        EngineError: the run was watched, and did not complete.
    """
    folder, new = again.read()
    job_id = submitting.resume(folder, new)
    if not json:
        if new:
            render.plain(f"it goes on as {new.study.what}")
        render.line(f"submitted {render.name(folder)}", f" again as job {job_id}")
    _stay([folder], watch, quiet=json)
    if json:
        render.print_json(_submitted(folder, job_id))


def _submitted(folder: RunFolder, job_id: str) -> dict[str, Any]:
    attempt = store.current(folder)
    return {"run": folder.path.name, "path": str(folder.path), "job_id": job_id, "state": attempt.state.value}


def _stay(folders: Sequence[RunFolder], watch: Watch, *, quiet: bool) -> None:
    """Watch runs to their ends, one after the other.

    Raises:
        EngineError: what became of the runs that did not complete.
    """
    failures = []
    for folder in folders if watch is not Watch.NO else ():
        try:
            last = render.follow(going_on.watch(folder), quiet=quiet or watch is Watch.WAIT)
        except KeyboardInterrupt:
            render.detached(folder)
            return
        if last.attempt.state is not RunState.COMPLETED:
            failures.append(_failure(folder, last.attempt))
        elif not quiet:
            render.summary(folder, last)
    if failures:
        raise EngineError("\n".join(each.message for each in failures), failures[0].hint)


def _failure(folder: RunFolder, attempt: Attempt) -> EngineError:
    """What to say of a run that did not complete, after its last words."""
    if attempt.state is RunState.PAUSED:
        return EngineError(attempt.reason, f"hpcdl resume {folder.path.name}")
    return render.ended_badly(folder, attempt)
