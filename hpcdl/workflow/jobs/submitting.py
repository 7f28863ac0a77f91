"""Handing runs to the scheduler: a first attempt, another one, the end of one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from hpcdl import shell
from hpcdl.errors import NoAnswerError, SchedulerError, UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.chains.deciding import GoOn
from hpcdl.runs.chains.links import outlook
from hpcdl.runs.record import Attempt, RunState
from hpcdl.schedulers.base import Job
from hpcdl.schedulers.directives import name_of
from hpcdl.schedulers.known import scheduler
from hpcdl.sites.site import Site
from hpcdl.workflow.claiming import check_mine, is_under_way, next_attempt, take, who
from hpcdl.workflow.jobs.ending import end
from hpcdl.workflow.states.following import refresh, site_of
from hpcdl.workflow.studies.chaining import Awaited
from hpcdl.workflow.studies.preparing import render, write_attempt
from hpcdl.workflow.studies.repeating import elements
from hpcdl.workflow.studies.reshaping import Reshaped, draft, rewrite


def submit(folders: Sequence[RunFolder], awaited: Awaited | None = None) -> list[str]:
    """Hand the first attempt of each run to the scheduler, as one array where it has those.

    Returns their job ids.

    Raises:
        UsageError: somebody else has claimed one of them meanwhile.
        SchedulerError: with the scheduler's own words when it refused; no further run is submitted then.
    """
    for folder in folders:
        take(folder, 1)
    return hand_over(folders, 1, awaited)


def hand_over(
    folders: Sequence[RunFolder], attempt: int, awaited: Awaited | None = None, name: str | None = None
) -> list[str]:
    """Submit an attempt that this process has claimed in each run and whose script is written.

    Args:
        folders: the runs.
        attempt: its number.
        awaited: runs that it waits for.
        name: of the job, as its script says; by default ``name_of`` the first run.

    Raises:
        UsageError, SchedulerError: as ``submit``.
    """
    site = site_of(folders[0])
    together = elements(site, len(folders))
    waits = awaited.record if awaited else {}
    job_ids: list[str] = []
    while len(job_ids) < len(folders):
        rest = folders[len(job_ids) :]
        batch = rest if together else rest[:1]
        _intend(batch, attempt, name, waits)
        try:
            start = expected_start(batch[0].script, site)
            job_id = _submitted(batch, site, attempt)
        except NoAnswerError as error:
            for folder in batch:
                store.note(folder, "broken off", attempt, reason=error.message)
            # The job may have come in all the same, so nobody is said to have refused it.
            raise NoAnswerError(error.message, _way_out(batch[0])) from None
        except SchedulerError as error:
            for folder in rest:
                store.note(folder, "refused", attempt, reason=error.message)
            raise
        new = [together.job_id(job_id, index) for index in range(len(rest))] if together else [job_id]
        detail = {"scheduler": site.scheduler.kind, "expected_start": start} | waits
        for folder, own in zip(batch, new, strict=True):
            store.note(folder, "submitted", attempt, job_id=own, **detail)
        job_ids += new
    return job_ids


def _way_out(folder: RunFolder) -> str:
    run = folder.path.name
    return (
        f"the job may have come in all the same: hpcdl status {run} looks for it, "
        f"and hpcdl resume {run} submits it if it is not there"
    )


def _intend(batch: Sequence[RunFolder], attempt: int, name: str | None, waits: dict[str, Any]) -> None:
    """Note what is about to be asked of the scheduler: whoever comes after a crash looks for it."""
    in_array = len(batch) > 1
    name = name or name_of(store.resolved(batch[0]).run, attempt, in_array=in_array)
    for index, folder in enumerate(batch):
        element = {"element": index} if in_array else {}
        place = str(folder.path)
        store.note(folder, "submitting", attempt, job_name=name, place=place, **element, **waits)


def _submitted(batch: Sequence[RunFolder], site: Site, attempt: int) -> str:
    """Submit the script of the first of these runs for all of them; return its job id."""
    first, backend = batch[0], scheduler(site.scheduler.kind)
    check_mine(batch, attempt)
    here = site.scheduler.kind == "local"
    job_id = backend.submitted(shell.run(backend.submit(first.script), cwd=first.path, here=here))
    try:
        check_mine(batch, attempt)
    except UsageError:
        backend.cancelled(shell.run(backend.cancel(job_id)))
        raise
    return job_id


def expected_start(script: Path, site: Site) -> str:
    """When the job of a script would start, as its scheduler estimates; empty where it is not asked.

    Raises:
        SchedulerError: it would refuse the job, with its own words.
    """
    preflight = scheduler(site.scheduler.kind).PREFLIGHT
    if preflight is None or not site.scheduler.preflight:
        return ""
    return preflight.parse(shell.run(preflight.command(script), cwd=script.parent))


def judgement(script: str, site: Site) -> str:
    """What the scheduler says to a script that nobody submits; empty where it is not at hand.

    The machine one is on may be another than the site's, so a refusal is no error.
    """
    preflight = scheduler(site.scheduler.kind).PREFLIGHT
    if preflight is None or not shutil.which(preflight.command(Path())[0]):
        return ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.sh")
        path.write_text(script, encoding="utf-8")
        try:
            start = expected_start(path, site)
        except SchedulerError as error:
            return error.message
    return f"expected to start: {start}" if start else ""


def cancel(folder: RunFolder) -> Attempt:
    """Ask the scheduler to end a run; one that is over is kept from going on by itself.

    Raises:
        UsageError: it was never submitted, is being submitted, or was started by hand.
        SchedulerError: with the scheduler's own words when it refused.
    """
    (attempt,) = refresh([folder])
    if attempt.by_hand:
        raise UsageError(
            f"{folder.path.name} has no job to cancel: {attempt.reason}", "end that process on its host"
        )
    if attempt.state.over or attempt.job_id is None:
        return _called_off(folder, attempt)
    end(attempt.job_id, [(folder, attempt.number)], site_of(folder))
    check_last(folder, attempt.number)
    return replace(attempt, cancel_requested=True)


def _called_off(folder: RunFolder, newest: Attempt) -> Attempt:
    """The last attempt of a run that has no job; none comes after it by itself.

    Raises:
        UsageError: there was none, or another is just being submitted.
    """
    run, ended = folder.path.name, last_tried(folder)
    if ended is None:
        why = f": {newest.reason}" if newest.reason else ""
        raise UsageError(f"{run} was never submitted, there is nothing to cancel{why}")
    if isinstance(outlook(folder, newest), GoOn):
        store.note(folder, "cancel requested", ended.number)
        ended = replace(ended, cancel_requested=True)
    check_last(folder, ended.number)
    return ended


def check_last(folder: RunFolder, number: int) -> None:
    """Make sure that no attempt comes after this one, of which it is noted that somebody wanted its end.

    Raises:
        UsageError: another is just being submitted; who claimed it before that note may not see it any more.
    """
    run, next_one = folder.path.name, store.current(folder)
    if next_one.number > number and (next_one.job_id or is_under_way(folder, next_one)):
        raise UsageError(
            f"{run}: attempt {next_one.number} is being submitted by {who(folder, next_one.number)}",
            f"hpcdl cancel {run} once more, as soon as hpcdl status {run} tells its job",
        )


def last_tried(folder: RunFolder, before: float = inf) -> Attempt | None:
    """The newest attempt that came to anything, as last seen; of those with a number less than ``before``."""
    tried = [
        attempt
        for attempt in store.history(folder)
        if attempt.number < before and attempt.state is not RunState.PREPARED and not attempt.given_up
    ]
    return tried[-1] if tried else None


def resume(folder: RunFolder, new: Reshaped | None = None) -> str:
    """Submit a run again; training continues from its newest checkpoint. Returns the job id.

    Args:
        folder: the run.
        new: in which other shape it goes on; by default in the one that it has.

    Raises:
        UsageError: it is still going, has finished, or somebody else is submitting it.
        SchedulerError: it refuses, or does not answer; where it cannot say whether it has the run already,
            nothing is submitted.
    """
    (attempt,) = refresh([folder], fresh=True)
    work = draft(folder, new)
    script = render(work)  # nothing is claimed that cannot be submitted
    number = next_attempt(folder, attempt)
    if new is not None:
        rewrite(folder, new, attempt.number)
    write_attempt(work, script)
    try:
        (job_id,) = hand_over([folder], number)
    except NoAnswerError:
        raise
    except SchedulerError as error:
        raise _with_way_out(error, work) from None
    return job_id


def _with_way_out(error: SchedulerError, work: Job) -> SchedulerError:
    """The refusal, which may be for the nodes that the run leaves out of its own: too few may be left."""
    own = [node for node in work.exclude if node not in work.run.experiment.resources.exclude]
    if not own:
        return error
    hint = (
        f"without {', '.join(own)} there may be too few nodes: --set resources.exclude_bad=false lets them in"
    )
    return SchedulerError(error.message, f"{error.hint}; {hint}" if error.hint else hint)
