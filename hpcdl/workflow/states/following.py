"""The state of runs: the scheduler asked, the folders read, the two brought together."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from hpcdl.errors import SchedulerError, UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics, store
from hpcdl.runs.blame import Evidence
from hpcdl.runs.record import SUBMISSION_GRACE_S, Attempt, RunState, Sighting, former, verdict
from hpcdl.schedulers.base import JobState, Report
from hpcdl.schedulers.known import scheduler
from hpcdl.sites.site import Site
from hpcdl.workflow.states.asking import Answer, Outside, at_one_moment, pause
from hpcdl.workflow.states.desks import Desk, Jobs, desk_for
from hpcdl.workflow.states.recognising import NOT_ANSWERED, needs_recognition, recognised

_WORLD = Outside()
RECORD_LAG_S = 5.0
"""How long one waits for the record of a script whose job is over."""
_SOON_S = 0.1  # how often one looks whether the question that somebody else put was answered


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment, for whoever watches."""

    attempt: Attempt
    lately: metrics.Progress  # of its newest steps alone
    steps: int | None  # in all; None where only the program knows


def site_of(folder: RunFolder) -> Site:
    """The site of a run as it was when the run was prepared."""
    run = store.resolved(folder)
    return Site.model_validate(run.site_file).read_from(run.site_path)


def refresh(folders: Sequence[RunFolder], outside: Outside = _WORLD, *, fresh: bool = False) -> list[Attempt]:
    """The newest attempt of each run, with at most one question to each scheduler for all of its jobs.

    Args:
        folders: the runs.
        outside: programs and a clock.
        fresh: whether an answer that somebody had a moment ago will not do.

    Raises:
        SchedulerError: a scheduler does not answer.
    """
    attempts = {folder.path: _as_seen(folder) for folder in folders}
    now = at_one_moment(outside)  # elements of one array are looked for under one name
    for folder in folders:
        if needs_recognition(attempts[folder.path]):
            found = recognised(folder, attempts[folder.path], site_of(folder), now, fresh=fresh)
            attempts[folder.path] = found
    # Of what is known here, not what the folder says by now: somebody may just be making another attempt.
    asked = [(folder, attempts[folder.path]) for folder in folders if _is_open(attempts[folder.path])]
    for desk, group in _by_desk(asked, outside):
        jobs: dict[str, Path] = {}
        for folder in group:
            jobs |= _job(folder, attempts[folder.path])
        answer = _consult(desk, jobs, outside, fresh=fresh)
        _await_records([(folder, attempts[folder.path]) for folder in group], answer, outside)
        if not _tells(answer, jobs):
            answer = _consult(desk, jobs, outside, fresh=True)
        attempts |= {folder.path: _settle(folder, attempts[folder.path], answer) for folder in group}
    return [attempts[folder.path] for folder in folders]


def last_known(folder: RunFolder) -> Attempt:
    """The newest attempt where its scheduler cannot be asked: as last seen, or as its script says it ended.

    Nothing is noted: the scheduler may know better why it ended.
    """
    attempt = store.current(folder)
    if needs_recognition(attempt) and not attempt.by_start:
        return replace(attempt, reason=attempt.reason or NOT_ANSWERED)
    evidence = _evidence(folder, attempt)
    if not (_is_open(attempt) or attempt.by_hand) or evidence.script_exit is None:
        return attempt
    return verdict(attempt, None, evidence, attempt.submitted)


def _as_seen(folder: RunFolder) -> Attempt:
    """The newest attempt; one that is another life of a job is noted, and what became of the life before.

    Who may not note it learns as much from the links in the folder.
    """
    history = store.history(folder)
    if not any(attempt.again for attempt in history):
        return _ended_by_hand(folder, history[-1]) if history else Attempt(0)
    noted = {event.attempt for event in store.events(folder) if event.kind == "requeued"}
    for before, attempt in pairwise(history):
        if attempt.again and attempt.number not in noted:
            _note_former(folder, before)
            with suppress(UsageError):  # as in _note_seen
                store.note(folder, "requeued", attempt.number, job_id=attempt.job_id)
    return _ended_by_hand(folder, store.current(folder))


def _ended_by_hand(folder: RunFolder, attempt: Attempt) -> Attempt:
    """The attempt; if somebody started its script, as its record says that it ended."""
    evidence = _evidence(folder, attempt) if attempt.by_hand else None
    if evidence is None or evidence.script_exit is None:
        return attempt
    after = verdict(attempt, None, evidence, attempt.submitted)
    _note_seen(folder, attempt, after)
    return after


def _note_former(folder: RunFolder, attempt: Attempt) -> None:
    """Keep why an attempt ended whose job was run again."""
    if attempt.state is RunState.REQUEUED:
        _note_seen(folder, attempt, former(attempt, _evidence(folder, attempt)))


def _note_seen(folder: RunFolder, before: Attempt, after: Attempt) -> None:
    """Keep what was observed, where that may be written: at somebody else's run one can still look."""
    with suppress(UsageError):
        store.note_change(folder, before, after)


def _is_open(attempt: Attempt) -> bool:
    return attempt.job_id is not None and not store.is_settled(attempt)


def _job(folder: RunFolder, attempt: Attempt) -> dict[str, Path]:
    """The job of an attempt, with the record that its script leaves."""
    return {attempt.job_id: folder.job_exit(attempt.number)} if attempt.job_id else {}


def _by_desk(
    asked: Sequence[tuple[RunFolder, Attempt]], outside: Outside
) -> Iterator[tuple[Desk, list[RunFolder]]]:
    groups: dict[tuple[Path, str, str | None], list[tuple[RunFolder, Attempt]]] = defaultdict(list)
    for folder, attempt in asked:
        site = site_of(folder)
        who = scheduler(site.scheduler.kind).controller(attempt.job_id or "")
        groups[folder.path.parent, site.name, who].append((folder, attempt))
    for group in groups.values():
        yield _desk_of(*group[0], outside), [folder for folder, _ in group]


def _desk_of(folder: RunFolder, attempt: Attempt, outside: Outside) -> Desk:
    return desk_for(folder.path.parent, site_of(folder), attempt.job_id or "", outside)


def _consult(desk: Desk, jobs: Jobs, outside: Outside, *, fresh: bool) -> Answer:
    """An answer from which the truth about all of ``jobs`` follows; asked for if nobody has it yet.

    Raises:
        SchedulerError: the scheduler does not answer.
    """
    poll = desk.site.scheduler.poll_seconds
    since = outside.now() - poll
    own = fresh or _is_ending(desk.newest(), jobs)
    answer = None if own else desk.newest()
    while answer is None or not _serves(answer, jobs, since, outside.now() + poll):
        answer = desk.ask(jobs, hurry=True)
        if answer is None:
            outside.sleep(_SOON_S)
            answer = None if own else desk.newest()
    if answer.error:
        raise SchedulerError(answer.error, answer.hint)
    return answer


def _is_ending(answer: Answer, jobs: Jobs) -> bool:
    """Whether a script has ended of whose job the scheduler did not yet say so."""
    return not all(_is_told(job_id, answer) for job_id, end in jobs.items() if end.exists())


def _is_told(job_id: str, answer: Answer) -> bool:
    """Whether an answer tells of a job that it is over, or that it is to run again."""
    report = answer.reports.get(job_id)
    again = report and report.state is JobState.QUEUED and answer.ended[job_id]
    return bool(report and (report.state.over or again))


def _serves(answer: Answer, jobs: Jobs, since: float, until: float) -> bool:
    """Whether an answer will do. One from the future is of a host whose clock is ahead, and of any age."""
    return since <= answer.asked <= until and (_tells(answer, jobs) or bool(answer.error))


def _tells(answer: Answer, jobs: Jobs) -> bool:
    return all(answer.tells(job_id, ended=end.exists()) for job_id, end in jobs.items())


def _settle(folder: RunFolder, before: Attempt, answer: Answer) -> Attempt:
    """The attempt after an answer, which may be older than what its ranks have left."""
    job_id, evidence = before.job_id or "", _evidence(folder, before)
    if not answer.tells(job_id, ended=evidence.script_exit is not None):
        return before
    report = answer.reports.get(job_id)
    if before.again and report and report.state.over and answer.asked < before.submitted:
        return before  # that was the end of a former life of the job
    sighting = _sighting(report) if report else None
    after = _told_of_move(verdict(before, sighting, evidence, answer.asked))
    _note_seen(folder, before, after)
    return after


def _sighting(report: Report) -> Sighting:
    return Sighting(RunState(report.state.value), report.words, report.exit_code, report.past)


def _evidence(folder: RunFolder, attempt: Attempt) -> Evidence:
    return store.evidence(folder, attempt.number, store.resolved(folder, attempt.number).layout.ranks)


def _told_of_move(attempt: Attempt) -> Attempt:
    """A script goes to the folder from which it was submitted, and fails where that has been moved."""
    if not attempt.state.failed or not attempt.place or RunFolder(Path(attempt.place)).resolved.is_file():
        return attempt
    moved = f"its folder was moved after it was submitted, from {attempt.place}; resume submits it from here"
    return replace(attempt, reason="; ".join(filter(None, (attempt.reason, moved))))


def _await_records(group: Sequence[tuple[RunFolder, Attempt]], answer: Answer, outside: Outside) -> None:
    """Give records of scripts that have just ended the time to be seen from here.

    A client of a network file system may not see for seconds what was written elsewhere. Without the record
    a job that ended by itself is lost, or said to have completed although it only paused.
    """
    for _ in range(round(RECORD_LAG_S / _SOON_S) + 1):
        if not any(_is_late(*each, answer) for each in group):
            return
        for folder, attempt in group:
            with suppress(OSError):  # asks the file server anew what is there
                os.utime(folder.exits(attempt.number))
        outside.sleep(_SOON_S)


def _is_late(folder: RunFolder, attempt: Attempt, answer: Answer) -> bool:
    """Whether a job seems to have just ended by itself, and the record of its script is not there."""
    job_id = attempt.job_id or ""
    if attempt.state.over or attempt.cancel_requested or folder.job_exit(attempt.number).exists():
        return False
    report = answer.reports.get(job_id)
    if report is None:
        new = answer.asked - attempt.submitted < SUBMISSION_GRACE_S
        return answer.tells(job_id, ended=False) and not new
    return report.state in (JobState.COMPLETED, JobState.FAILED)


def watch(folder: RunFolder, interval_s: float = 0.5, outside: Outside = _WORLD) -> Iterator[Snapshot]:
    """Snapshots until the run is over.

    All who watch runs of one folder together ask a scheduler no more often than its site allows; while it
    does not answer, they wait longer and longer. A run is over when the scheduler, asked after the script
    has ended, says so.
    """
    for attempt in attempts_of(folder, interval_s, outside):
        yield snapshot(folder, attempt)


def snapshot(folder: RunFolder, attempt: Attempt) -> Snapshot:
    """The run with its newest attempt as it stands."""
    done = metrics.progress(metrics.lately(folder))
    return Snapshot(attempt, done, store.resolved(folder).experiment.steps)


def attempts_of(folder: RunFolder, interval_s: float = 0.5, outside: Outside = _WORLD) -> Iterator[Attempt]:
    """The newest attempt again and again until the run is over: as ``watch``, without reading its steps.

    It is over too where the submission of an attempt was broken off, and the scheduler does not have it.
    """
    desk, failures = None, 0
    while True:
        attempt, failures = _recognised(folder, _as_seen(folder), failures, outside)
        if _is_open(attempt):
            desk = desk or _desk_of(folder, attempt, outside)
            answer = desk.ask(_job(folder, attempt)) or desk.newest()
            _await_records([(folder, attempt)], answer, outside)
            attempt = _settle(folder, attempt, answer)
        yield attempt
        if attempt.state.over or (_is_broken_off(attempt) and not failures):
            return
        outside.sleep(pause(site_of(folder), failures) if failures else interval_s)


def _recognised(folder: RunFolder, attempt: Attempt, failures: int, outside: Outside) -> tuple[Attempt, int]:
    """The attempt, after looking for its job if nobody noted one; and how often nobody could say.

    Args:
        folder: the run.
        attempt: its newest, as its events tell it.
        failures: how often in a row nobody could say whether there is a job.
        outside: the world.
    """
    if not needs_recognition(attempt):
        return attempt, 0
    try:
        return recognised(folder, attempt, site_of(folder), outside, fresh=True), 0
    except SchedulerError as error:
        return replace(attempt, reason=error.message), failures + 1


def _is_broken_off(attempt: Attempt) -> bool:
    """Whether nobody is about to submit an attempt any more that was claimed."""
    return attempt.number > 0 and attempt.state is RunState.PREPARED and not attempt.claimed_by
