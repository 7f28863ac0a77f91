"""Handing the points of a sweep to the scheduler: as arrays where it has them, held back as asked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from hpcdl.errors import ClaimedError, NoAnswerError, SchedulerError, UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.record import Attempt, RunState
from hpcdl.runs.sweeps import groups
from hpcdl.runs.sweeps.groups import Group
from hpcdl.schedulers.base import After
from hpcdl.schedulers.directives import job_name
from hpcdl.sites.site import Site
from hpcdl.workflow.claiming import next_attempt
from hpcdl.workflow.jobs.ending import end
from hpcdl.workflow.jobs.submitting import hand_over
from hpcdl.workflow.states.following import refresh, site_of
from hpcdl.workflow.studies import chaining
from hpcdl.workflow.studies.chaining import Awaited
from hpcdl.workflow.studies.preparing import render, write_attempt
from hpcdl.workflow.sweeps.arrays import Batch, Member, batches, has_queue, turns_of, whole, work
from hpcdl.workflow.sweeps.batches import Turn
from hpcdl.workflow.sweeps.room import fitting


@dataclass
class Sent:
    """What became of points that were to be submitted."""

    jobs: dict[str, int] = field(default_factory=dict)  # job id → how many points it runs
    left: list[Member] = field(default_factory=list)  # for which there is no room yet
    taken: int = 0  # points that somebody else is submitting

    @property
    def points(self) -> int:
        """How many were submitted."""
        return sum(self.jobs.values())


WAITING = frozenset({RunState.PREPARED, RunState.REFUSED, RunState.PAUSED})
"""Points that were not submitted yet, that were not taken, or that saved themselves and stopped."""

FAILED = frozenset(state for state in RunState if state.failed) - WAITING
"""Points that ended otherwise than they should; one that was cancelled did not."""

CANCELLED = frozenset({RunState.CANCELLED})

_FLAGS = {"": WAITING, "--failed": FAILED, "--cancelled": CANCELLED}


def again(group: Group, states: Collection[RunState]) -> str:
    """What to type for points that stand so to be submitted."""
    flags = [flag for flag, among in _FLAGS.items() if among.intersection(states)]
    return " and ".join(f"hpcdl resume {group.name} {flag}".strip() for flag in flags)


def chosen(folders: Sequence[RunFolder], states: frozenset[RunState]) -> list[Member]:
    """The next attempts of those points that stand so.

    Raises:
        SchedulerError: the scheduler cannot be asked how they stand.
    """
    standing = zip(folders, refresh(folders, fresh=True), strict=True)
    return [
        Member(folder, store.resolved(folder), attempt)
        for folder, attempt in standing
        if attempt.state in states
    ]


def send(group: Group, members: Sequence[Member]) -> Sent:
    """Submit points, as far as there is room for them and nobody calls the sweep off.

    Those that may run beside none of the sweep's jobs and must wait for other runs too, which no scheduler is
    told together, have no room before one of the two is over.

    Args:
        group: what they are points of.
        members: at least one.

    Raises:
        UsageError: a run folder cannot be written, or what they wait for can no longer come true.
        SchedulerError: with the scheduler's own words when it refused. Those before are in the queue, which
            is the hint.
    """
    site, going = site_of(members[0].folder), _going(group)
    now = fitting(members, (store.resolved(folder) for folder in going), group.at_once, site)
    fit = {member.folder.path for member in now}
    found = batches(now, site) if now else []
    awaited = _awaited(group, now, site)
    held = group.at_once is not None and has_queue(site)
    sent = Sent(left=[member for member in members if member.folder.path not in fit])
    ids: list[str | None] = []  # of each batch
    earlier = [whole(each.job_id or "", site) for each in going.values()]
    for batch, turn in zip(found, turns_of(found, site, group.at_once), strict=True):
        before = [ids[place] for place in turn.waits]
        behind = _behind(group, [job_id for job_id in before if job_id] or earlier) if held else None
        first = awaited if awaited and any(map(_is_new, batch)) else None
        if behind and first:
            ids.append(None)
            sent.left += batch
            continue
        try:
            ids.append(_handed_over(group, batch, turn, behind or first, sent))
        except (UsageError, SchedulerError) as error:
            raise type(error)(error.message, _left_hint(group, members, sent, error)) from None
    return sent


def _going(group: Group) -> dict[RunFolder, Attempt]:
    """Points whose jobs are not over, as last seen."""
    standing = {folder: store.current(folder) for folder in group.folders}
    return {
        folder: each for folder, each in standing.items() if each.job_id is not None and not each.state.over
    }


def _is_new(member: Member) -> bool:
    """Whether a point never had a job; one that had waits for nobody, as every run that is resumed."""
    return not any(attempt.job_id for attempt in store.history(member.folder))


def _awaited(group: Group, members: Sequence[Member], site: Site) -> Awaited | None:
    """What is left to wait for of the runs that the sweep was submitted after, where a point waits for them.

    Raises:
        UsageError: it can no longer come true.
        NoAnswerError: the scheduler cannot be asked how those runs stand.
    """
    new = next(filter(_is_new, members), None) if group.after else None
    if group.after is None or new is None:
        return None
    try:
        return chaining.awaited(group.after, group.runs, site)
    except UsageError as error:
        anyway = f"hpcdl resume {new.folder.path.name} submits that point all the same"
        hint = "; ".join(filter(None, (error.hint, anyway)))
        raise UsageError(f"points of {group.name} wait for {group.after}: {error.message}", hint) from None
    except SchedulerError as error:
        raise NoAnswerError(error.message, error.hint) from None


def _behind(group: Group, job_ids: Sequence[str]) -> Awaited | None:
    """What a point waits for that may not run beside these jobs."""
    return Awaited((group.name,), After("any", tuple(dict.fromkeys(job_ids)))) if job_ids else None


def _handed_over(group: Group, batch: Batch, turn: Turn, awaited: Awaited | None, sent: Sent) -> str | None:
    """Submit what nobody else does of a batch, and count it; its job id, None if there is none.

    Raises:
        SiteError, UsageError: it has no script, or a run folder cannot be written.
        SchedulerError: it was refused.
    """
    if groups.is_called_off(group):
        sent.left += batch
        return None
    site = site_of(batch[0].folder)
    render(work(batch, site, turn, None, awaited.after if awaited else None))  # else nothing is claimed
    mine = [member for member in batch if _claimed(member)]
    sent.taken += len(batch) - len(mine)
    if not mine:
        return None
    job_id = _sent(group, mine, turn, awaited)
    sent.jobs[job_id] = len(mine)
    return job_id


def _claimed(member: Member) -> bool:
    """Claim the next attempt of a point; whether nobody else has.

    Raises:
        UsageError: its folder cannot be written.
    """
    try:
        next_attempt(member.folder, member.before)
    except ClaimedError:
        return False
    return True


def _left_hint(
    group: Group, members: Sequence[Member], sent: Sent, error: UsageError | SchedulerError
) -> str:
    before = f"{sent.points} point{'s are' if sent.points != 1 else ' is'} in the queue"
    rest = again(group, {store.current(member.folder).state for member in members})
    return "; ".join(filter(None, (error.hint, before, rest and f"{rest} submits the rest")))


def _sent(group: Group, batch: Batch, turn: Turn, awaited: Awaited | None) -> str:
    """Write the scripts of a batch and submit it; the job id, of an array that of all of it."""
    folders = [member.folder for member in batch]
    links = group.link(folders) if len(batch) > 1 else None
    site = site_of(folders[0])
    ours = work(batch, site, turn, links, awaited.after if awaited else None)
    script = render(ours)
    for member in batch:
        write_attempt(replace(ours, folder=member.folder.path), script)
    job_ids = hand_over(folders, batch[0].attempt, awaited, job_name(ours))
    job_id = whole(job_ids[0], site)
    if groups.is_called_off(group):  # by somebody who could not see this job yet
        end(job_id, [(member.folder, member.attempt) for member in batch], site)
    return job_id
