"""One update: gradients are summed, their norm is agreed on, and the weights change.

Chunk by chunk, while later chunks are still being reduced, the norm is taken; the weights are updated, if
nothing has to be known of all chunks first (no clipping, no loss scale); and with ZeRO-1 sent around.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn

import torch

from hpcdl.engine.data_parallel import Gradients
from hpcdl.engine.ending import end_after_culprit
from hpcdl.engine.groups import Groups
from hpcdl.engine.optim import clip
from hpcdl.engine.optim.bucket import Chunk
from hpcdl.engine.optim.choosing import choose
from hpcdl.engine.optim.flat import Flat
from hpcdl.engine.optim.scaler import Scaler
from hpcdl.engine.timeline import OPTIMIZER, Timeline
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.base import Reduction
from hpcdl.errors import EngineError
from hpcdl.spec.experiment import Experiment

_DIVERGED = "lower training.optimizer.lr, add warmup, or look at the data of that step"


@dataclass(frozen=True)
class Outcome:
    """What one step was like, the same on all ranks."""

    loss: float  # mean over the tokens of the whole batch
    grad_norm: float  # before clipping; infinite where the step was skipped
    skipped: bool = False  # fp16 gradients overflowed, so nothing was updated
    stop: bool = False  # somebody asked one of the ranks to end the run


@dataclass(frozen=True)
class Step:
    """Which step it is and how far it goes."""

    number: int
    learning_rate: float
    stop: bool = False  # whether this rank was asked to end the run after it


class Update:
    """How this rank's weights change.

    Args:
        experiment: the optimizer, and what may overlap.
        flat: the weights.
        topology: where this rank sits.
        groups: the ranks it agrees with.
        timeline: of this rank.
    """

    def __init__(
        self, experiment: Experiment, flat: Flat, topology: Topology, groups: Groups, timeline: Timeline
    ) -> None:
        training, overlap = experiment.training, experiment.communication.overlap
        self.gradients = Gradients(flat, groups.ends, early=overlap.gradient_reduction)
        self._flat = flat
        self._topology = topology
        self._world = groups.world
        self._timeline = timeline
        self.choice = choose(training, flat, groups.world)
        self._stepping = self.choice.stepping
        self._clip = training.optimizer.clip
        self._scaler = Scaler(training.loss_scale) if training.precision == "fp16" else None
        self._overlap = overlap.optimizer
        self._at_once = overlap.optimizer and not self._clip and self._scaler is None

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied with, so that fp16 gradients do not vanish."""
        return self._scaler.factor if self._scaler else 1.0

    def make(self, step: Step, loss: torch.Tensor) -> Outcome:
        """Update all weights, once every gradient of this rank has come.

        Args:
            step: which one.
            loss: what this rank adds to the mean loss of the batch.

        Raises:
            EngineError: the loss or the gradient is not a finite number, on this rank first. Where weights
                are updated at once, some have changed.
            PeerLostError: likewise, on another rank first.
        """
        outcome = self._agree(step, loss, self._reduced(step))
        if outcome.skipped:
            assert self._scaler is not None  # noqa: S101 - for mypy
            self._scaler.overflow(step.number)
            return outcome
        if not self._at_once:
            self._change_all(step, self.loss_scale / clip.scale(outcome.grad_norm, self._clip))
        if self._scaler:
            self._scaler.clean()
        return outcome

    def _reduced(self, step: Step) -> torch.Tensor:
        """This rank's share of the squared norm of the summed gradients, taken as they come."""
        squared = torch.zeros((), dtype=torch.float64, device=self._flat.device)
        chunks = self.gradients.finished()
        for chunk in chunks if self._overlap else list(chunks):
            squared += clip.squared_norm(chunk.weighed)
            if self._at_once:
                self._change(chunk, step.learning_rate, None)
        self.gradients.settle()
        return squared

    def _change_all(self, step: Step, divisor: float) -> None:
        for chunk in self._flat.chunks:
            self._change(chunk, step.learning_rate, None if divisor == 1.0 else divisor)
        self.gradients.settle()

    def _change(self, chunk: Chunk, learning_rate: float, divisor: float | None) -> None:
        with self._timeline.span(OPTIMIZER, "optimizer"):
            for bucket in chunk.buckets:
                self._stepping.update(bucket, learning_rate, divisor)
            self._stepping.join()
        self.gradients.publish(chunk)

    def _agree(self, step: Step, loss: torch.Tensor, squared: torch.Tensor) -> Outcome:
        """Loss and gradient norm of the whole world, and whether it is to stop, in one all-reduce."""
        spoken = loss.double() if self._topology.reports_loss else torch.zeros_like(loss).double()
        mine = torch.stack([spoken, squared, torch.full_like(squared, float(step.stop))])
        world = mine.clone()
        self._world.all_reduce(world).wait()
        with self._timeline.waiting("agreement"):  # a device may only now wait for the others
            total, whole, stops = world.tolist()
        stop = stops > 0
        if not math.isfinite(total):
            self._refuse(step.number, f"the loss became {total}", mine[0])
        if math.isfinite(whole):
            return Outcome(total, math.sqrt(whole) / self.loss_scale, stop=stop)
        if self._scaler is None:
            self._refuse(step.number, f"the squared gradient norm became {whole}", mine[1])
        return Outcome(total, math.inf, skipped=True, stop=stop)

    def _refuse(self, step: int, what: str, mine: torch.Tensor) -> NoReturn:
        """Name the first rank whose own part is not finite; all ranks saw the sum and come here.

        Only that rank fails by itself: its own record is the one by which the run is judged.
        """
        ranks, own = self._world.size, self._topology.rank
        voice = torch.where(mine.isfinite(), 0.0, float(ranks - own)).reshape(1)
        self._world.all_reduce(voice, Reduction.MAX).wait()
        first = ranks - int(voice.item())
        words = f"{what} in step {step}, on rank {first}"
        if first == own:
            raise EngineError(words, _DIVERGED)
        end_after_culprit(words, _DIVERGED)

    def counters(self) -> dict[str, float]:
        """What must be kept beside the parts of the flat memory; the same on all ranks."""
        self._flat.settle()
        updates = float(self._flat.chunks[0].buckets[0].updates.item())
        return {"updates": updates} | (self._scaler.counters() if self._scaler else {})

    @torch.no_grad()
    def restored(self, counters: dict[str, float]) -> None:
        """Go on: masters and moments were filled in, so make the parameters of them."""
        if self._scaler:
            self._scaler.restore(counters)
        for chunk in self._flat.chunks:
            for bucket in chunk.buckets:
                bucket.updates.fill_(counters["updates"])
                bucket.round()
            self.gradients.publish(chunk)
        self.gradients.settle()
