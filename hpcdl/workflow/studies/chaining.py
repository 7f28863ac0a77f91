"""Runs that wait for others: what ``--after`` means to a scheduler, once what is already over is known."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.record import Attempt, RunState
from hpcdl.runs.sweeps import groups
from hpcdl.schedulers.base import After, Ending
from hpcdl.schedulers.known import scheduler
from hpcdl.sites.site import Site
from hpcdl.workflow.states.following import refresh, site_of

_JOB_ID = re.compile(r"\w[\w.:;@\[\]+-]*")
"""Of any scheduler: 72[1].server, 12_3;cluster, ƒ2oPz."""


@dataclass(frozen=True)
class Awaited:
    """Runs that were not over when another that waits for them was submitted."""

    runs: tuple[str, ...]
    after: After  # the same for the scheduler

    @property
    def record(self) -> dict[str, Any]:
        """What the event of a submission keeps of it."""
        return {"after": self.runs, "ending": self.after.ending}

    def given(self, runs: Path) -> str:
        """The same as ``awaited`` takes it, by ids where the runs lie in this folder."""
        places = self.after.folders
        return f"{','.join(p.name if p.parent == runs else str(p) for p in places)}:{self.after.ending}"


def awaited(text: str, runs: Path, site: Site) -> Awaited | None:
    """What is left to wait for of ``RUN[,RUN…][:ok|any|failed]``; None if all of it has come true.

    Args:
        text: as given; without a word at its end, the runs must complete.
        runs: the folder of runs.
        site: where the run that waits goes.

    Raises:
        UsageError: no such run, one that can no longer end so, or one that this scheduler knows nothing of.
        SchedulerError: the scheduler cannot be asked how the runs stand.
    """
    names, ending = _parsed(text)
    folders = list({found.path: found for name in names for found in [_found(name, runs)]}.values())
    for folder in folders:
        _check_job_id(folder)
    standing = zip(folders, refresh(folders, fresh=True), strict=True)
    left = [
        (folder, attempt) for folder, attempt in standing if _is_awaited(folder.path.name, attempt, ending)
    ]
    if not left:
        return None
    for folder, _ in left:
        _check_queue(folder, site)
    job_ids = tuple(attempt.job_id or "" for _, attempt in left)
    places = tuple(folder.path for folder, _ in left)
    return Awaited(tuple(place.name for place in places), After(ending, job_ids, places))


def _found(name: str, runs: Path) -> RunFolder:
    found = store.find(name, runs)
    group = groups.of_run(found) if name == "last" else None
    if group:
        raise UsageError(
            f"--after last: the newest run is one of the {len(group.points)} of the sweep {group.name}",
            f"name those to wait for, for example --after {found.path.name}",
        )
    return found


def _check_job_id(folder: RunFolder) -> None:
    """Refuse what cannot stand in a directive: the folder may be somebody else's."""
    job_id = store.current(folder).job_id
    if job_id is not None and not _JOB_ID.fullmatch(job_id):
        raise UsageError(
            f"--after {folder.path.name}: its events name {job_id!r}, which is no job id",
            f"{folder.launcher_events} is damaged",
        )


def _parsed(text: str) -> tuple[list[str], Ending]:
    listed, colon, word = text.rpartition(":")
    if not colon or "/" in word:
        listed, word = text, "ok"
    for ending in get_args(Ending):
        if word == ending:
            return [name.strip() for name in listed.split(",")], ending
    raise UsageError(
        f"--after {text}: {word!r} is none of {', '.join(get_args(Ending))}",
        "for example --after last:any, or --after RUN,RUN for runs that must complete",
    )


_ENDED: dict[Ending, Callable[[RunState], bool]] = {
    "ok": lambda state: state is RunState.COMPLETED,
    "failed": lambda state: state not in (RunState.COMPLETED, RunState.PAUSED),
    "any": lambda _: True,
}
"""Whether a run that is over ended so; one that saved itself and paused neither completed nor failed."""


def _is_awaited(run: str, attempt: Attempt, ending: Ending) -> bool:
    """Whether a run is still to end.

    Raises:
        UsageError: it cannot end as it should, or nobody knows how it stands.
    """
    state = attempt.state
    if attempt.job_id is None and not state.over:
        raise UsageError(f"--after {run}: it was never submitted", f"submit it, or remove {run}")
    if state is RunState.UNKNOWN or (state is RunState.LOST and ending != "any"):
        raise UsageError(
            f"--after {run}: nobody knows how it stands: {attempt.reason}",
            f"look at it with hpcdl status {run}; --after {run}:any takes a run that is lost for ended",
        )
    if not state.over:
        return True
    if not _ENDED[ending](state):
        raise UsageError(
            f"--after {run}:{ending}: it is already over, and {state.value}",
            "there is nothing to wait for" if state is RunState.COMPLETED else f"hpcdl resume {run} goes on",
        )
    return False


def _check_queue(folder: RunFolder, site: Site) -> None:
    """Refuse to wait where no scheduler sees to it."""
    run, elsewhere = folder.path.name, site_of(folder)
    if (elsewhere.name, elsewhere.scheduler.kind) != (site.name, site.scheduler.kind):
        raise UsageError(
            f"--after {run}: it is on site {elsewhere.name}, unknown to the scheduler of {site.name}",
            "submit both to one site, or wait for its end",
        )
    if not scheduler(site.scheduler.kind).PREFIX:
        raise UsageError(
            f"--after {run}: it is not over, and site {site.name} has no queue in which a run could wait",
            f"wait for its end: hpcdl logs {run} --follow",
        )
