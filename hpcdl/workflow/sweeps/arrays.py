"""Points of a sweep as scheduler jobs: which of them are one array, and what its script says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs.record import Attempt
from hpcdl.runs.sweeps.groups import Group
from hpcdl.schedulers.base import After, Array, Job
from hpcdl.schedulers.known import scheduler
from hpcdl.sites.site import Site
from hpcdl.spec.reading import AnyRun
from hpcdl.workflow.studies.preparing import job, render, resolve
from hpcdl.workflow.sweeps.batches import Turn, alike, turns
from hpcdl.workflow.sweeps.sweeping import Swept


@dataclass(frozen=True)
class Member:
    """The next attempt of one point."""

    folder: RunFolder
    run: AnyRun
    before: Attempt  # the newest there is

    @property
    def attempt(self) -> int:
        """Its number."""
        return self.before.number + 1


Batch = list[Member]
"""Points of one scheduler job: an array, or one alone."""


def drafts(swept: Swept, runs: Path, after: After | None = None) -> list[tuple[Batch, Job]]:
    """What a submission would hand over, with nothing written; the first of each batch stands for its job.

    Args:
        swept: the sweep.
        runs: the folder of runs.
        after: jobs that must be over before any of its points.

    Raises:
        UsageError: the points cannot wait both for other runs and for each other.
        SiteError, SchedulerError: the site and a point cannot be brought together.
    """
    members = [
        Member(RunFolder(runs / f"RUN-{index}"), resolve(planned.study, f"RUN-{index}"), Attempt(0))
        for index, planned in enumerate(swept.feasible)
    ]
    found = batches(members, swept.site)
    held = turns_of(found, swept.site, swept.at_once)
    if after and any(turn.waits for turn in held):
        raise UsageError(
            f"--after: with at_once {swept.at_once} the points of {swept.name} wait for each other already",
            "leave out one of them",
        )
    links = Group(runs, "RUN", swept.site.name, swept.at_once, {}).place
    return [
        (batch, work(batch, swept.site, turn, links / str(number) / f"RUN-a{number}", after))
        for number, (batch, turn) in enumerate(zip(found, held, strict=True))
    ]


def batches(members: Sequence[Member], site: Site) -> list[Batch]:
    """Points that ask the same of the scheduler together: those whose scripts differ in the folder only."""
    if scheduler(site.scheduler.kind).ELEMENTS is None:
        return [[member] for member in members]
    first = members[0].folder.path
    array = Array((first, first), links=first.with_name("links"))

    def script(member: Member) -> str:
        own = job(member.folder, member.run, site, member.attempt)
        return render(replace(own, folder=first, array=array))

    return alike(members, script, site.scheduler.max_array)


def turns_of(found: Sequence[Batch], site: Site, at_once: int | None) -> list[Turn]:
    """Where there is no queue, nothing can be held back in it; so much less is submitted (``room``)."""
    return turns([len(batch) for batch in found], at_once if has_queue(site) else None)


def has_queue(site: Site) -> bool:
    """Whether jobs of a site wait somewhere."""
    return bool(scheduler(site.scheduler.kind).PREFIX)


def work(batch: Batch, site: Site, turn: Turn, links: Path | None, after: After | None = None) -> Job:
    """The job of a batch, as its first point would have it."""
    first = batch[0]
    alone = replace(job(first.folder, first.run, site, first.attempt), after=after)
    if len(batch) == 1:
        return alone
    folders = tuple(member.folder.path for member in batch)
    return replace(alone, array=Array(folders, turn.at_once, links))


def whole(job_id: str, site: Site) -> str:
    """The job id of the array of which a job is an element; that of a job alone is its own."""
    elements = scheduler(site.scheduler.kind).ELEMENTS
    return elements.whole(job_id) if elements else job_id
