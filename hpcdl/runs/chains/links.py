"""The attempts of a run as links of a chain, read from its folder."""

from __future__ import annotations

from hpcdl.run_folder import NEARLY_OVER, RunFolder
from hpcdl.runs import store
from hpcdl.runs.chains.deciding import GoOn, Link, Stop, decide
from hpcdl.runs.failures.diagnosis import diagnose
from hpcdl.runs.record import Attempt, RunState, up_to
from hpcdl.telemetry import RunEvent, read


def outlook(folder: RunFolder, newest: Attempt) -> GoOn | Stop:
    """Whether a run goes on by itself after its newest attempt, as that was just seen."""
    return decide(links(folder, newest), store.resolved(folder).experiment.chain)


def links(folder: RunFolder, newest: Attempt) -> list[Link]:
    """The attempts of a run up to its newest, oldest first; less those whose turn never comes."""
    history = [attempt for attempt in up_to(newest, store.history(folder)) if not attempt.given_up]
    counted = store.resolved(folder).experiment.steps is not None
    saved = _progressed(folder)
    # A claim of which nothing came tells nothing of why the run stands.
    known = [attempt.number for attempt in history if attempt.state is not RunState.PREPARED]
    last = max(known, default=0)
    return [
        Link(
            attempt.state,
            saved=attempt.number in saved if counted else None,
            cause=_cause(folder, attempt) if attempt.number == last else "",
            stopped=_was_stopped(folder, attempt),
        )
        for attempt in history
    ]


def _progressed(folder: RunFolder) -> set[int]:
    """The attempts that saved a later step than the one they began with."""
    began: dict[int, int] = {}
    found = set()
    for event in read(folder.engine_events, RunEvent):
        if event.kind == "started":
            began[event.attempt] = event.detail.get("step", 0)
        elif event.kind == "checkpoint" and event.detail["step"] > began.get(event.attempt, 0):
            found.add(event.attempt)
    return found


def _cause(folder: RunFolder, attempt: Attempt) -> str:
    found = diagnose(folder, attempt).cause if attempt.state is RunState.FAILED else None
    return found.kind if found else ""


def _was_stopped(folder: RunFolder, attempt: Attempt) -> bool:
    """Whether it was cancelled, or saved itself because somebody asked for it and not because of its time."""
    if attempt.cancel_requested or attempt.state is not RunState.PAUSED:
        return attempt.cancel_requested
    try:
        return NEARLY_OVER not in folder.request(attempt.number).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
