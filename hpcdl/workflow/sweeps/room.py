"""Which points of a sweep may be submitted now: as many as a queue takes, or as have devices. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from hpcdl.sites.site import Site
from hpcdl.spec.reading import AnyRun
from hpcdl.workflow.sweeps.arrays import Member, has_queue
from hpcdl.workflow.sweeps.batches import admitted, beside


def fitting(
    members: Sequence[Member], going: Iterable[AnyRun], at_once: int | None, site: Site
) -> list[Member]:
    """The points for which there is room, in order.

    Args:
        members: at least one.
        going: points of the same sweep whose jobs are not over; not looked at where there is any room.
        at_once: most points that may run at a time.
        site: where they run.
    """
    if not has_queue(site):
        return list(members[: _fitting_here(members, list(going), at_once, site)])
    doors = {_door(member.run, site) for member in members}
    limits = {door: site.partition(door)[1].max_jobs for door in doors}
    most = {door: limit for door, limit in limits.items() if limit is not None}
    taken = Counter(_door(run, site) for run in going) if most else Counter[str]()
    room: dict[Hashable, int] = {door: limit - taken[door] for door, limit in most.items()}
    return admitted(members, lambda member: _door(member.run, site), room)


def _door(run: AnyRun, site: Site) -> str:
    """The queue through which a point goes."""
    return site.partition(run.experiment.resources.queue)[0]


def _fitting_here(members: Sequence[Member], going: Sequence[AnyRun], at_once: int | None, site: Site) -> int:
    """How many of the first points may start, where no scheduler sees to it."""
    ranks = [member.run.layout.ranks for member in members]
    devices = min(site.node(member.run.experiment.resources.queue).devices for member in members)
    count = beside(ranks, devices, sum(run.layout.ranks for run in going))
    return count if at_once is None else max(0, min(count, at_once - len(going)))
