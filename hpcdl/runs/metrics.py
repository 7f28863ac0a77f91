"""How far a run is, from the step records of its ranks."""

from __future__ import annotations

from dataclasses import dataclass

from hpcdl.run_folder import RunFolder
from hpcdl.telemetry import StepRecord, read


@dataclass(frozen=True)
class Progress:
    """Where training stands."""

    step: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    tokens_per_second: float | None = None  # median of the steps after the first
    seconds: float = 0.0  # spent in steps


def steps(folder: RunFolder, rank: int = 0) -> list[StepRecord]:
    """The step records of one rank, a repeated step (after a restart) as it ran last."""
    latest = {record.step: record for record in read(folder.rank_metrics(rank), StepRecord)}
    return [latest[step] for step in sorted(latest)]


def progress(records: list[StepRecord]) -> Progress:
    """What step records amount to. The first step is left out of the rate: it warms up."""
    if not records:
        return Progress()
    rates = sorted(record.tokens_per_second for record in records[1:] or records)
    return Progress(
        step=records[-1].step,
        first_loss=records[0].loss,
        last_loss=records[-1].loss,
        tokens_per_second=rates[len(rates) // 2],
        seconds=sum(record.step_seconds for record in records),
    )
