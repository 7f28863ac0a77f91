"""How runs of one study go into the queue: after which others, how many, and how many at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hpcdl.errors import InfeasibleError, UsageError
from hpcdl.planner.layout import find_partition
from hpcdl.schedulers.base import Elements
from hpcdl.schedulers.known import scheduler
from hpcdl.sites.site import Site
from hpcdl.workflow.studies.chaining import Awaited
from hpcdl.workflow.studies.studying import Study


@dataclass(frozen=True)
class Queueing:
    """How runs of a study go into the queue."""

    awaited: Awaited | None = None
    repeat: int | None = None  # how many runs, which differ in their seed; None: one, which is no array
    at_once: int | None = None  # how many of them may run at a time


ALONE = Queueing()
"""One run that waits for nobody."""


def elements(site: Site, size: int) -> Elements | None:
    """How runs that are submitted together are told apart; None if each is a job of its own."""
    return scheduler(site.scheduler.kind).ELEMENTS if size > 1 else None


def seeded(study: Study, index: int) -> Study:
    """The study with a seed of its own for one of several repetitions."""
    return replace(study, experiment=study.experiment.repeated(index))


def check_repeat(study: Study, queueing: Queueing) -> None:
    """Refuse more runs than the site takes, and holding back what cannot be held back.

    Raises:
        InfeasibleError: more than an array or the queue takes.
        UsageError: ``at_once`` where there is no array.
    """
    site, size = study.site, queueing.repeat or 1
    for most, what, place in _limits(study):
        if size > most:
            raise InfeasibleError(
                f"--repeat {size}: {what} takes at most {most} jobs of a user at once ({place})",
                f"submit them in parts, with --set training.seed=N and --repeat {most} or fewer",
            )
    if queueing.at_once and elements(site, size) is None:
        why = "here is one run" if size == 1 else f"site {site.name} ({site.scheduler.kind}) has no arrays"
        raise UsageError(
            f"--at-once {queueing.at_once}: only the elements of a job array can be held back, and {why}",
            "leave it out, or submit the runs one by one with --wait",
        )


def _limits(study: Study) -> Iterator[tuple[int, str, str]]:
    """How many jobs, of what, and where that stands."""
    site = study.site
    key, partition = find_partition(study.experiment.resources.queue, site, study.document)
    yield site.scheduler.max_array, f"site {site.name}", site.place("scheduler", "max_array")
    if partition.max_jobs is not None:
        yield partition.max_jobs, f"queue {key}", site.place("partitions", key, "max_jobs")
