"""Who keeps a run from going on. Pure.

A rank that stands still is either waiting for others, or it is what they wait for. So the ranks to blame are
those that stand still without waiting, and those that give no sign of life. Where there are none, all wait
for each other. While one still works, or may need longer where it is, nothing is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from hpcdl.telemetry import BEAT_S, Blamed, Heartbeat, beat_seconds

USUAL_STEPS = 20
AT_LEAST_S = 600.0
OF_TIMEOUT = 0.8  # of what a runtime lets an operation wait: it would end the run without a name
ROOM = 10  # times as long where a rank may need it
ROOMY = frozenset({"checkpoint"})
"""Phases that may be one long operation, as the time before the first step may."""
BRISK = frozenset({"pre-flight"})
"""Phases before the first step that take seconds."""

_SILENCE_S = 5.0  # at least; a busy host may keep a thread from writing for a while
_NAMED = 8  # groups of ranks that a message names


def patience(asked: int | None, step_seconds: float | None, timeout_seconds: float) -> float | None:
    """For how many seconds a rank may stand still within a step; None: for ever.

    Args:
        asked: ``health.hang_seconds``.
        step_seconds: what a step usually takes; None before the first.
        timeout_seconds: how long the runtime lets an operation wait.
    """
    if asked is not None:
        return float(asked) or None
    return min(max(AT_LEAST_S, USUAL_STEPS * (step_seconds or 0.0)), OF_TIMEOUT * timeout_seconds)


def room(usual: float | None, phase: str, most: float, *, step_done: bool) -> float | None:
    """For how many seconds a rank may stand still where it is; None: for ever.

    Args:
        usual: within a step.
        phase: what it is at.
        most: where that may be one long operation; the runtime of those that wait gives up some time.
        step_done: whether it has finished a step.
    """
    roomy = phase in ROOMY or not (step_done or phase in BRISK)
    return max(usual, min(ROOM * usual, most)) if usual is not None and roomy else usual


def pace(usual: float | None, ranks: int) -> float:
    """Seconds between two signs of life: a few, but more where there are very many ranks.

    Args:
        usual: how long a rank may stand still within a step.
        ranks: how many there are.
    """
    return beat_seconds(ranks, min(BEAT_S, (usual or BEAT_S * 4) / 4))


def silence(usual: float, interval: float) -> float:
    """After how many seconds without a sign of life a rank counts as silent.

    Args:
        usual: how long a rank may stand still within a step.
        interval: between two signs of life.
    """
    return max(_SILENCE_S, 4 * interval, usual / 10)


@dataclass(frozen=True)
class Sight:
    """What one rank has seen of another.

    Args:
        rank: the other.
        heartbeat: its newest sign of life; None if it never gave one.
        unchanged: for how many seconds, by the clock of who looks, there has been no newer one.
    """

    rank: int
    heartbeat: Heartbeat | None
    unchanged: float


class Finding(Enum):
    """What is to be done."""

    WAIT = "wait"  # somebody is at work
    BLAME = "blame"
    DEADLOCK = "deadlock"  # all wait for each other


@dataclass(frozen=True)
class Verdict:
    """Who keeps the run from going on.

    Args:
        finding: whether somebody does.
        silent: ranks that give no sign of life.
        stuck: ranks that stand still and wait for nobody.
    """

    finding: Finding
    silent: tuple[Sight, ...] = ()
    stuck: tuple[Sight, ...] = ()

    @property
    def culprits(self) -> tuple[Sight, ...]:
        """All to blame, the surest first."""
        return self.stuck + self.silent


def judge(sights: Sequence[Sight], longest_silence: float) -> Verdict:
    """Who keeps the run from going on.

    Args:
        sights: of every rank.
        longest_silence: seconds without a sign of life after which a rank counts as silent.
    """
    silent = tuple(sight for sight in sights if sight.unchanged >= longest_silence)
    living = [sight for sight in sights if sight.unchanged < longest_silence]
    if any(sight.heartbeat is None or not is_stuck(sight.heartbeat) for sight in living):
        return Verdict(Finding.WAIT)
    stuck = tuple(sight for sight in living if sight.heartbeat and not sight.heartbeat.waiting)
    return Verdict(Finding.BLAME if silent or stuck else Finding.DEADLOCK, silent, stuck)


def is_stuck(heartbeat: Heartbeat) -> bool:
    """Whether a rank has stood still for longer than it may there."""
    return heartbeat.patience is not None and heartbeat.still > heartbeat.patience


def standstill(heartbeat: Heartbeat) -> str:
    """What a rank says of itself that stands still."""
    return f"stood still for {heartbeat.still:.0f} s {heartbeat.where}"


def blamed(culprits: Sequence[Sight]) -> Blamed:
    """The first of the ranks to blame, and what is said of it; the others are named there."""
    first = culprits[0]
    host = first.heartbeat.host if first.heartbeat else "unknown host"
    others = f"; as well as {_ranks([sight.rank for sight in culprits[1:]])}" if len(culprits) > 1 else ""
    return Blamed(first.rank, host, _accusation(first) + others)


def _accusation(sight: Sight) -> str:
    seen = sight.heartbeat
    if seen is None:
        return f"no sign of life for {sight.unchanged:.0f} s, nor ever one before"
    if is_stuck(seen):
        return standstill(seen)
    return f"no sign of life for {sight.unchanged:.0f} s; the last one {seen.where}"


def deadlock(sights: Sequence[Sight]) -> str:
    """All ranks by what they wait for, in few words."""
    by_operation: dict[str, list[int]] = defaultdict(list)
    for sight in sights:
        by_operation[sight.heartbeat.at if sight.heartbeat else "?"].append(sight.rank)
    groups = [f"{_ranks(ranks)} in {at}" for at, ranks in by_operation.items()]
    shown = [*groups[:_NAMED], "…"] if len(groups) > _NAMED else groups
    return f"all ranks wait for each other: {'; '.join(shown)}"


def _ranks(ranks: Sequence[int]) -> str:
    listed = ", ".join(map(str, ranks[:_NAMED])) + (" …" if len(ranks) > _NAMED else "")
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {listed}"
