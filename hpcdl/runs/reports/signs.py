"""What each rank of a running attempt was last seen at, and what is wrong with some of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics
from hpcdl.runs.failures.alike import spans
from hpcdl.runs.spending import written
from hpcdl.telemetry import beat_seconds, read_heartbeat
from hpcdl.units import format_seconds

_SILENT_S = 30.0  # at least, without a sign of life from a rank while others give some
_BEATS = 4  # likewise, of the usual pace
_BEHIND = 2  # steps; ranks of one step may be seen as far apart


@dataclass(frozen=True)
class Sign:
    """What was last seen of one rank.

    Args:
        rank: which.
        host: where it runs; empty if it did not say.
        step: the last that it finished; 0 if it has finished none in this attempt.
        where: what it is at, in words; may be empty.
        silent: seconds by which its newest sign is older than that of any rank; infinite if there is none.
        still: seconds for which it has been standing at ``where``, by its own word.
    """

    rank: int
    host: str = ""
    step: int = 0
    where: str = ""
    silent: float = 0.0
    still: float = 0.0


def signs(folder: RunFolder, attempt: int, ranks: int) -> list[Sign]:
    """The newest sign of each rank of an attempt.

    Heartbeats and step records are files of one file system, and so is the start of the attempt: their
    times are by one clock, whatever those of the hosts say.
    """
    since = written(folder.start(attempt)) or 0.0
    seen = [_seen(folder, attempt, rank, since) for rank in range(ranks)]
    newest = max((time for _, time in seen if time is not None), default=0.0)
    return [replace(sign, silent=math.inf if time is None else newest - time) for sign, time in seen]


def _seen(folder: RunFolder, attempt: int, rank: int, since: float) -> tuple[Sign, float | None]:
    """A rank, and when it gave its newest sign.

    A beat comes every few seconds and counts from 0 in each attempt; a record comes with each step, and may
    be of an earlier attempt.
    """
    path = folder.heartbeat(attempt, rank)
    beat, beaten = read_heartbeat(path), written(path)
    record, recorded = metrics.newest(folder, rank), written(folder.rank_metrics(rank))
    if record is None or record.attempt not in (0, attempt) or (recorded or 0.0) < since:
        record = recorded = None
    sign = Sign(rank, beat.host, beat.step, beat.where, still=beat.still) if beat else Sign(rank)
    times = [time for time in (beaten, recorded) if time is not None]
    return replace(sign, step=max(sign.step, record.step if record else 0)), max(times, default=None)


def troubles(found: Sequence[Sign], step_seconds: float | None) -> list[str]:
    """What is wrong with ranks, in words; nothing while none has given a sign yet.

    Args:
        found: a sign of each rank.
        step_seconds: of a step; None where it is not known, so that nobody is called behind.
    """
    known = [sign for sign in found if math.isfinite(sign.silent)]
    if not known:
        return []
    unseen = [sign.rank for sign in found if not math.isfinite(sign.silent)]
    patience = max(_SILENT_S, _BEATS * beat_seconds(len(found)))
    silent = [sign for sign in known if sign.silent > patience]
    furthest = max(sign.step for sign in known)
    behind = [sign for sign in known if step_seconds and _lags(sign, furthest, step_seconds)]
    told = []
    if unseen:
        told.append(f"{spans(unseen)}: no sign of life yet")
    if silent:
        longest = format_seconds(max(sign.silent for sign in silent))
        told.append(f"{spans(sign.rank for sign in silent)}: silent for {longest}")
    if behind:
        steps = furthest - min(sign.step for sign in behind)
        told.append(f"{spans(sign.rank for sign in behind)}: {steps} steps behind")
    return told


def _lags(sign: Sign, furthest: int, step_seconds: float) -> bool:
    """Whether a rank is further behind than the steps that it may have done since its sign.

    One that has finished no step in this attempt has not said where it began.
    """
    return sign.step > 0 and furthest - sign.step > _BEHIND + sign.silent / step_seconds
