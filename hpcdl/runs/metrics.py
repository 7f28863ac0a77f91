"""How far a run is, from the step records of its ranks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from hpcdl.run_folder import RunFolder
from hpcdl.telemetry import StepRecord, read, read_last, read_tail

# What step records name apart and a person reads together; everything else is communication.
_ALONE = ("compute", "optimizer", "idle", "other")
_TAIL_BYTES = 32 * 1024  # of a file: some fifty steps


@dataclass(frozen=True)
class Progress:
    """Where training stands."""

    step: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    validation_loss: float | None = None  # of the newest evaluation
    tokens_per_second: float | None = None  # median of the steps after the first
    step_seconds: float | None = None  # likewise
    seconds: float = 0.0  # spent in steps
    mfu: float | None = None  # median, as before
    hfu: float | None = None  # likewise
    spent: dict[str, float] = field(default_factory=dict)  # share of the time, by what it went to


def steps(folder: RunFolder, rank: int = 0) -> list[StepRecord]:
    """The step records of one rank, as they led to where it stands.

    Steps after the checkpoint from which a run went on are left out: they are repeated.
    """
    kept: list[StepRecord] = []
    extend(kept, read(folder.rank_metrics(rank), StepRecord))
    return kept


def extend(kept: list[StepRecord], records: Iterable[StepRecord]) -> None:
    """Add later records to those of ``steps``; a step that was there before takes back what followed it."""
    for record in records:
        while kept and kept[-1].step >= record.step:
            kept.pop()
        kept.append(record)


def lately(folder: RunFolder, rank: int = 0) -> list[StepRecord]:
    """The newest of ``steps``, those of one attempt, from the end of the file: it may be looked at often."""
    kept: list[StepRecord] = []
    extend(kept, read_tail(folder.rank_metrics(rank), StepRecord, _TAIL_BYTES))
    return [record for record in kept if record.attempt == kept[-1].attempt]


def newest(folder: RunFolder, rank: int = 0) -> StepRecord | None:
    """The last of ``steps``, without reading the others; None before the first step."""
    return read_last(folder.rank_metrics(rank), StepRecord)


def progress(records: list[StepRecord], since: int = 0) -> Progress:
    """What step records amount to. The first step is left out of the rate: it warms up.

    Args:
        records: of one rank.
        since: an attempt; the rate is that of its steps and later ones, where there are any.
    """
    if not records:
        return Progress()
    fresh = [record for record in records if record.attempt >= since] or records
    warm = fresh[1:] or fresh
    evaluated = [record.validation_loss for record in records if record.validation_loss is not None]
    return Progress(
        step=records[-1].step,
        first_loss=records[0].loss,
        last_loss=records[-1].loss,
        validation_loss=evaluated[-1] if evaluated else None,
        tokens_per_second=median(record.tokens_per_second for record in warm),
        step_seconds=median(record.step_seconds for record in warm),
        seconds=sum(record.step_seconds for record in records),
        mfu=_median([record.mfu for record in warm if record.mfu is not None]),
        hfu=_median([record.hfu for record in warm if record.hfu is not None]),
        spent=_shares(warm),
    )


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _shares(records: Sequence[StepRecord]) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for record in records:
        for category, seconds in record.seconds.items():
            totals[category if category in _ALONE else "communication"] += seconds
    whole = sum(totals.values())
    return {category: seconds / whole for category, seconds in totals.items()}


def planned_step_seconds(folder: RunFolder) -> float | None:
    """What the plan said a step would take; None if the plan cannot be read."""
    try:
        return float(json.loads(folder.plan.read_text(encoding="utf-8"))["candidates"][0]["step_seconds"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
