"""One rank's part of the model, and how one batch changes it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hpcdl.engine.data_parallel import Gradients
from hpcdl.engine.groups import Groups, make_groups
from hpcdl.engine.models.build import build_stage
from hpcdl.engine.optim import clip
from hpcdl.engine.optim.adamw import AdamW
from hpcdl.engine.pipeline.runner import Batch, Pass, Seat
from hpcdl.engine.tensor.parameters import Numerics, Part
from hpcdl.engine.timeline import Timeline
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.base import Reduction, Transport
from hpcdl.errors import EngineError
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Outcome:
    """What one step was like, the same on all ranks."""

    loss: float  # mean over the targets of the whole batch
    grad_norm: float  # before clipping


class Learner:
    """Stage, gradients and optimizer of one rank.

    Args:
        experiment: the model and how it is trained.
        decomposition: how it is spread.
        transport: the way to the other ranks, all of which build theirs at the same time.
        device: where this rank computes.
    """

    def __init__(
        self, experiment: Experiment, decomposition: Decomposition, transport: Transport, device: torch.device
    ) -> None:
        training, model = experiment.training, experiment.model
        self.topology = Topology(decomposition, transport.rank)
        self.groups: Groups = make_groups(transport, self.topology, tied=model.tied)
        numerics = Numerics(_DTYPES[training.precision], device, training.seed)
        self.stage = build_stage(model, self.topology, self.groups, numerics)
        self.gradients = Gradients(self.stage.held, self.topology, self.groups, training.chunk_mib)
        self._optimizer = AdamW(self.gradients.slots, training.optimizer)
        self.timeline = Timeline()
        self._seat = Seat(transport, self.topology, self.groups.team, self.timeline)
        self._clip = training.optimizer.clip
        self.device = device

    def step(
        self,
        step: int,
        inputs_BL: torch.Tensor,
        targets_BL: torch.Tensor,
        learning_rate: float,
        counted: int | None = None,
    ) -> Outcome:
        """Train on this rank's share of one batch.

        Args:
            step: the first is 1.
            inputs_BL: tokens.
            targets_BL: the token after each; a negative one is ignored.
            learning_rate: of this step.
            counted: targets of the whole batch that are not ignored; all if not given.

        Raises:
            EngineError: the loss or the gradient is not a finite number; nothing is updated.
        """
        batch = self._cut(inputs_BL, targets_BL, step, counted)
        self.gradients.begin(batch.microbatches)
        loss = Pass(self._seat, self.stage, batch).run()
        self.gradients.finish()
        outcome = self._agree(step, loss)
        self._optimizer.step(learning_rate, clip.scale(outcome.grad_norm, self._clip))
        return outcome

    def evaluate(self, inputs_BL: torch.Tensor, targets_BL: torch.Tensor) -> float:
        """Mean loss a token over a batch of which every shard has equally many rows; nothing is learned."""
        loss = Pass(self._seat, self.stage, self._cut(inputs_BL, targets_BL, step=None)).run()
        total = loss.double() if self.topology.reports_loss else torch.zeros_like(loss).double()
        self.groups.world.all_reduce(total).wait()
        return float(total.item())

    def _cut(
        self, inputs_BL: torch.Tensor, targets_BL: torch.Tensor, step: int | None, counted: int | None = None
    ) -> Batch:
        """Microbatches of this rank's share; ``counted`` targets of the whole batch weigh alike."""
        decomposition = self.topology.decomposition
        inputs, targets = (
            torch.split(rows_BL.to(self.device), decomposition.microbatch)
            for rows_BL in (inputs_BL, targets_BL)
        )
        tokens = inputs_BL.numel() * decomposition.batch_shards
        return Batch(
            inputs, targets, 1 / (counted or tokens), self.topology.batch_shard * len(inputs_BL), step
        )

    def _agree(self, step: int, loss: torch.Tensor) -> Outcome:
        """Loss and gradient norm of the whole world, in one all-reduce."""
        spoken = loss.double() if self.topology.reports_loss else torch.zeros_like(loss).double()
        mine = torch.stack([spoken, clip.squared_norm(self.gradients.slots).to(self.device)])
        world = mine.clone()
        self.groups.world.all_reduce(world).wait()
        total, squared = world.tolist()
        if not math.isfinite(total):
            raise self._not_finite(step, f"the loss became {total}", mine[0])
        if not math.isfinite(squared):
            raise self._not_finite(step, f"the squared gradient norm became {squared}", mine[1])
        return Outcome(total, math.sqrt(squared))

    def _not_finite(self, step: int, what: str, mine: torch.Tensor) -> EngineError:
        """Names the first rank whose own part is not finite; all ranks saw the sum and come here."""
        ranks = self.groups.world.size
        voice = torch.where(mine.isfinite(), 0.0, float(ranks - self.topology.rank)).reshape(1)
        self.groups.world.all_reduce(voice, Reduction.MAX).wait()
        return EngineError(
            f"{what} in step {step}, on rank {ranks - int(voice.item())}",
            "lower training.optimizer.lr, add warmup, or look at the data of that step",
        )

    def parts(self) -> list[Part]:
        """What must be kept of the parameters this rank updates, as live tensors."""
        return self._optimizer.parts(self.topology)

    def counters(self) -> dict[str, float]:
        """What else must be kept; the same on all ranks."""
        return {"updates": self._optimizer.steps}

    def restored(self, counters: dict[str, float]) -> None:
        """Go on: all parts were filled in."""
        self._optimizer.restored(int(counters["updates"]))
