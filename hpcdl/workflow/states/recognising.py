"""Jobs of whose submission no answer was noted: whether the scheduler has them all the same."""

from __future__ import annotations

import pwd
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.record import SUBMISSION_GRACE_S, Attempt, RunState
from hpcdl.schedulers.known import scheduler
from hpcdl.sites.site import Site
from hpcdl.workflow.claiming import is_under_way, who
from hpcdl.workflow.states.asking import Outside

NOT_ANSWERED = "no answer to its submission was noted, and the scheduler does not tell now whether it has it"
NOT_ASKED = "its submission was broken off before the scheduler was asked; resume submits it"
NOT_KNOWN = "its submission was broken off; the scheduler does not know it; resume submits it"
NOT_KNOWN_YET = "its submission was broken off just now; the scheduler does not know it yet"


def needs_recognition(attempt: Attempt) -> bool:
    """Whether an attempt was claimed, but no answer to its submission is noted."""
    return attempt.by_start or (attempt.state is RunState.PREPARED and attempt.number > 0)


def recognised(
    folder: RunFolder, attempt: Attempt, site: Site, outside: Outside, *, fresh: bool = False
) -> Attempt:
    """An attempt that needs it, after looking for its job; claimed by nobody where none will come.

    Args:
        folder: the run.
        attempt: as its events tell it.
        site: of the run.
        outside: programs and a clock.
        fresh: whether it is looked for again although it was not found before, and waited for if it is new.

    Raises:
        SchedulerError: the scheduler does not answer.
    """
    if attempt.by_start:
        return _noted(folder, attempt, site, _whole(attempt.job_id or "", site))
    if attempt.given_up or (attempt.reason == NOT_KNOWN and not fresh):
        return replace(attempt, claimed_by="", reason=NOT_KNOWN)
    if is_under_way(folder, attempt):
        return replace(attempt, reason=f"being submitted by {who(folder, attempt.number)}")
    if not attempt.job_name:
        return replace(attempt, claimed_by="", reason=attempt.reason or NOT_ASKED)
    return _looked_for(folder, attempt, site, outside, patient=fresh)


def _looked_for(
    folder: RunFolder, attempt: Attempt, site: Site, outside: Outside, *, patient: bool
) -> Attempt:
    new = abs(outside.now() - attempt.submitted) < SUBMISSION_GRACE_S
    job_id = _find(folder, attempt, site, outside)
    if job_id is None and new:
        if not patient:
            return replace(attempt, reason=NOT_KNOWN_YET)
        outside.sleep(SUBMISSION_GRACE_S)
        job_id = _find(folder, attempt, site, outside)
    if job_id is not None:
        return _noted(folder, attempt, site, job_id)
    now = store.current(folder)
    if (now.number, now.state) != (attempt.number, attempt.state):
        return now  # somebody submitted it meanwhile
    if attempt.reason != NOT_KNOWN:
        _note(folder, attempt, "broken off", reason=NOT_KNOWN)
    return replace(attempt, claimed_by="", reason=NOT_KNOWN)


def _find(folder: RunFolder, attempt: Attempt, site: Site, outside: Outside) -> str | None:
    """The id of the job that bears the name of an attempt, or of the attempt's element of it."""
    found = named(folder, attempt.job_name, site, outside)
    elements = scheduler(site.scheduler.kind).ELEMENTS
    if found and attempt.element is not None and elements:
        return elements.job_id(found[0], attempt.element)
    return found[0] if found else None


def named(folder: RunFolder, name: str, site: Site, outside: Outside) -> list[str]:
    """The ids of the jobs of this name that the owner of a folder has.

    Raises:
        SchedulerError: the scheduler does not answer.
    """
    for naming in scheduler(site.scheduler.kind).NAMINGS:
        if found := naming.parse(outside.run(naming.command(name, _user(folder), site)), site):
            return found
    return []


def _user(folder: RunFolder) -> str:
    """Who submits this run: whoever looks may be somebody else."""
    owner = folder.path.stat().st_uid
    try:
        return pwd.getpwuid(owner).pw_name
    except KeyError:
        return str(owner)


def _whole(job_id: str, site: Site) -> str:
    """A job's own word for itself does not name its cluster."""
    cluster = site.scheduler.cluster
    return f"{job_id};{cluster}" if cluster and ";" not in job_id else job_id


def _noted(folder: RunFolder, attempt: Attempt, site: Site, job_id: str) -> Attempt:
    kind = site.scheduler.kind
    _note(folder, attempt, "submitted", job_id=job_id, scheduler=kind, recognised=True)
    return replace(attempt, job_id=job_id, state=RunState.QUEUED, reason="", by_start=False)


def _note(folder: RunFolder, attempt: Attempt, kind: str, **detail: Any) -> None:
    """Keep what was found, where that may be written: at somebody else's run one can still look."""
    with suppress(UsageError):
        store.note(folder, kind, attempt.number, **detail)
