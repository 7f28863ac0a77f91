"""What a rank records as it trains: a step record each step, and, on rank 0, the run's events."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch

from hpcdl.engine.log import say
from hpcdl.engine.ranks import Place
from hpcdl.engine.timeline import (
    ALL_GATHER,
    ALL_REDUCE,
    BROADCAST,
    COMPUTE,
    IDLE,
    OPTIMIZER,
    P2P,
    REDUCE_SCATTER,
)
from hpcdl.run_folder import RunFolder
from hpcdl.spec.entry import EntryModel
from hpcdl.spec.experiment import ResolvedRun
from hpcdl.telemetry import RunEvent, StepRecord, append
from hpcdl.units import format_count

_SPENT_ON = (COMPUTE, OPTIMIZER, ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST, P2P, IDLE)
_KIB = 1024


class Listener(Protocol):
    """Wants to know of every step."""

    def step(self, record: StepRecord) -> None:
        """One more is done."""


class Recorder:
    """The records of one rank.

    Args:
        folder: of the run.
        attempt: which one this is.
        place: this rank.
    """

    def __init__(self, folder: RunFolder, attempt: int, place: Place) -> None:
        self._metrics = folder.rank_metrics(place.rank)
        self._events = folder.engine_events if place.rank == 0 else None
        self.attempt = attempt
        self._listeners: tuple[Listener, ...] = ()
        self._metrics.parent.mkdir(parents=True, exist_ok=True)

    def tell(self, *listeners: Listener) -> None:
        """From here on these get every step record too."""
        self._listeners = listeners

    def step(self, record: StepRecord) -> None:
        """Keep one step, and say it in a line of the log."""
        append(self._metrics, record)
        for listener in self._listeners:
            listener.step(record)
        say(
            f"step {record.step} loss {record.loss:.4f} grad norm {record.grad_norm:.3f} "
            f"lr {record.learning_rate:.2e} {format_count(record.tokens_per_second)} tokens/s"
            f"{_validation(record)}"
        )

    def event(self, kind: str, **detail: Any) -> None:
        """Keep one event of the run; ranks other than 0 leave that to rank 0."""
        if self._events is not None:
            append(self._events, RunEvent(kind, time.time(), self.attempt, detail))


def _validation(record: StepRecord) -> str:
    return "" if record.validation_loss is None else f" validation loss {record.validation_loss:.4f}"


class Meter:
    """How well one rank uses its device.

    Args:
        run: says what a step computes and what the device could.
        device: where this rank computes.
    """

    def __init__(self, run: ResolvedRun, device: torch.device) -> None:
        experiment, decomposition = run.experiment, run.decomposition
        share = experiment.training.global_batch / decomposition.ranks  # sequences a step and rank
        self._model_flops = self._hardware_flops = 0.0  # nobody knows them of a model of the user's own
        if not isinstance(experiment.model, EntryModel):
            model = experiment.model
            again = model.recomputed_flops[decomposition.recompute]
            self._model_flops = share * model.train_flops
            self._hardware_flops = share * (model.train_flops + again)
        self._peak = run.peak_flops if self._model_flops else None
        self._device = device

    def complete(self, record: StepRecord, seconds: Mapping[str, float]) -> StepRecord:
        """``record`` with rates, memory and where the time of its step went.

        Args:
            record: has the time of the step.
            seconds: by category; what no category claims is ``other``.
        """
        rate, hardware_rate = (
            flops / record.step_seconds for flops in (self._model_flops, self._hardware_flops)
        )
        spent = {category: seconds.get(category, 0.0) for category in _SPENT_ON}
        return replace(
            record,
            flops_per_second=rate or None,
            mfu=rate / self._peak if self._peak else None,
            hfu=hardware_rate / self._peak if self._peak else None,
            memory_peak=memory_peak(self._device),
            seconds={**spent, "other": record.step_seconds - sum(spent.values())},
        )


def memory_peak(device: torch.device) -> int:
    """Most bytes that tensors on ``device`` took so far, or, on a CPU, that the process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB  # getrusage(2): in KiB on Linux
