"""What a rank records as it trains: a step record each step, and, on rank 0, the run's events."""

from __future__ import annotations

import time
from typing import Any

from hpcdl.engine.ranks import Place
from hpcdl.run_folder import RunFolder
from hpcdl.telemetry import RunEvent, StepRecord, append


class Recorder:
    """The records of one rank."""

    def __init__(self, folder: RunFolder, attempt: int, place: Place) -> None:
        self._metrics = folder.rank_metrics(place.rank)
        self._events = folder.engine_events if place.rank == 0 else None
        self._attempt = attempt
        self._metrics.parent.mkdir(parents=True, exist_ok=True)

    def step(self, record: StepRecord) -> None:
        """Keep one step, and say it in a line of the log."""
        append(self._metrics, record)
        print(  # noqa: T201 - standard output is this rank's log
            f"{time.strftime('%H:%M:%S')} step {record.step} loss {record.loss:.4f} "
            f"grad norm {record.grad_norm:.3f} lr {record.learning_rate:.2e} "
            f"{record.tokens_per_second:.0f} tokens/s{_validation(record)}",
            flush=True,
        )

    def event(self, kind: str, **detail: Any) -> None:
        """Keep one event of the run; ranks other than 0 leave that to rank 0."""
        if self._events is not None:
            append(self._events, RunEvent(kind, time.time(), self._attempt, detail))


def _validation(record: StepRecord) -> str:
    return "" if record.validation_loss is None else f" validation loss {record.validation_loss:.4f}"
