"""One rank's part of the model, and how one batch changes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod

import torch

from hpcdl.engine.checkpoint.shapes import shapes
from hpcdl.engine.data_parallel import Gradients
from hpcdl.engine.groups import Groups, make_groups
from hpcdl.engine.models.build import build_stage
from hpcdl.engine.models.own import OwnModel
from hpcdl.engine.optim.carry import carry, whole
from hpcdl.engine.optim.flat import Cut, Flat, Thrift
from hpcdl.engine.pipeline.runner import Batch, Pass, Seat
from hpcdl.engine.sparse.kept import Kept
from hpcdl.engine.tensor.parameters import Held, Numerics, Part
from hpcdl.engine.timeline import PHASE, Timeline
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.base import Transport
from hpcdl.engine.update import Outcome, Step, Update
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Learner:
    """Stage, gradients and optimizer of one rank.

    Args:
        experiment: the model and how it is trained.
        decomposition: how it is spread.
        transport: the way to the other ranks, all of which build theirs at the same time.
        device: where this rank computes.
        timeline: of this rank; one that nobody reads if not given.
    """

    def __init__(
        self,
        experiment: Experiment,
        decomposition: Decomposition,
        transport: Transport,
        device: torch.device,
        timeline: Timeline | None = None,
    ) -> None:
        training, model = experiment.training, experiment.model
        self.topology = Topology(decomposition, transport.rank)
        self.groups: Groups = make_groups(transport, self.topology, tied=experiment.tied)
        overlap = experiment.communication.overlap
        numerics = Numerics(_DTYPES[training.precision], device, training.seed, overlap)
        self.stage = build_stage(model, self.topology, self.groups, numerics)
        self._sizes = Cut(training.bucket_mib, training.buckets_per_chunk, sharded=decomposition.zero == 1)
        self.timeline = timeline or Timeline()
        self._experiment = experiment
        offload = decomposition.offload
        self._thrift = Thrift(None if offload == "none" else numerics.host, matrices=offload == "parameters")
        self._made_flat: Flat | None = None
        self._made_update: Update | None = None
        self._seat = Seat(transport, self.topology, self.groups.team, self.timeline)
        self._dtype = numerics.dtype
        self.device = device
        own = self.stage.shapes if isinstance(self.stage, OwnModel) else None
        self.shapes = shapes(experiment.shape) if own is None else own

    # Flat memory is made when it is first needed: a network that is pruned before has less of it. Not by a
    # cached_property: until Python 3.12 it holds a lock over all learners, and making an update communicates.
    @property
    def _flat(self) -> Flat:
        if self._made_flat is None:
            self._made_flat = Flat(self.stage.held, self.topology, self.groups, self._sizes, self._thrift)
        return self._made_flat

    @property
    def _update(self) -> Update:
        if self._made_update is None:
            groups, flat = self.groups, self._flat
            self._made_update = Update(self._experiment, flat, self.topology, groups, self.timeline)
        return self._made_update

    @property
    def gradients(self) -> Gradients:
        """Those of the batch that is being trained on."""
        return self._update.gradients

    @property
    def parameters(self) -> int:
        """Of the whole model, a tied weight counted once."""
        return sum(map(prod, self.shapes.values()))

    @property
    def offload(self) -> dict[str, object]:
        """Where weights are updated whose optimizer state lies on the host, and what was measured for it.

        Who asks first, all ranks together, has it measured.
        """
        return self._update.choice.told

    def step(
        self,
        step: Step,
        inputs_BL: torch.Tensor,
        targets_BL: torch.Tensor,
        counted: int | None = None,
    ) -> Outcome:
        """Train on this rank's share of one batch.

        Args:
            step: which one, the first is 1, and how far it goes.
            inputs_BL: tokens.
            targets_BL: the token after each; a negative one is ignored.
            counted: targets of the whole batch that are not ignored; all if not given.

        Raises:
            EngineError: the loss or the gradient is not a finite number; the weights may then be lost.
        """
        batch = self._cut(inputs_BL, targets_BL, step.number, counted)
        self.gradients.begin(batch.microbatches)
        with self.timeline.span(PHASE, "pipeline"):
            loss = Pass(self._seat, self.stage, batch).run() / self._update.loss_scale
        with self.timeline.span(PHASE, "update"):
            return self._update.make(step, loss)

    def evaluate(self, inputs_BL: torch.Tensor, targets_BL: torch.Tensor, size: int | None = None) -> float:
        """Mean loss a target over a batch of which every shard has equally many rows; nothing is learned.

        Args:
            inputs_BL: as in a step.
            targets_BL: as in a step.
            size: what the sum is divided by; as many as there are targets, ignored or not, if not given.
        """
        loss = Pass(self._seat, self.stage, self._cut(inputs_BL, targets_BL, None, size)).run()
        total = loss.double() if self.topology.reports_loss else torch.zeros_like(loss).double()
        self.groups.world.all_reduce(total).wait()
        with self.timeline.waiting("agreement"):
            return float(total.item())

    def _cut(
        self, inputs_BL: torch.Tensor, targets_BL: torch.Tensor, step: int | None, counted: int | None = None
    ) -> Batch:
        """Microbatches of this rank's share; ``counted`` targets of the whole batch weigh alike."""
        decomposition = self.topology.decomposition
        if inputs_BL.is_floating_point():  # of a model of the user's own
            inputs_BL = inputs_BL.to(self._dtype)
        inputs, targets = (
            torch.split(rows_BL.to(self.device), decomposition.microbatch)
            for rows_BL in (inputs_BL, targets_BL)
        )
        scale = 1.0 if step is None else self._update.loss_scale
        tokens = targets_BL.numel() * decomposition.batch_shards
        first = self.topology.batch_shard * len(inputs_BL)
        return Batch(inputs, targets, scale / (counted or tokens), first, step)

    def parts(self) -> list[Part]:
        """What must be kept of the elements this rank updates, as live tensors."""
        return list(self._flat.parts())

    @property
    def kept(self) -> Mapping[str, Kept]:
        """Of the parameters that are pruned here, what is left."""
        return self._thrift.kept

    def counted(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Pieces of weights by the name of their parameter; over all ranks each trained one is there once."""
        if self._made_flat is not None:
            yield from ((part.name, part.tensors["master"]) for part in self.parts() if part.writes)
        else:
            first = (held for held in self.stage.held if held.is_first(self.topology))
            yield from ((held.name, held.parameter.detach().view(-1)) for held in first)

    def master(self, held: Held) -> torch.Tensor:
        """What is kept of a parameter's fp32 weights, flat; those who share it ask together."""
        if self._made_flat is not None:
            return whole(self._flat, held.name, "master")
        return held.parameter.detach().view(-1).float()

    def prune(self, kept: Mapping[str, Kept]) -> None:
        """From now on train no more than ``kept`` of the parameters named there; all ranks together.

        If there is any state yet, what it was before and is after are both in memory meanwhile.

        Args:
            kept: of this rank's parameters, no element that is pruned already.
        """
        flat, self._made_flat = self._made_flat, None
        update, self._made_update = self._made_update, None
        self._thrift = replace(self._thrift, kept={**self.kept, **kept}, pruned=True)
        if flat is not None:
            carry(flat, self._flat)
        if update is not None:
            update.gradients.release()
        self.restored((update or self._update).counters())

    def counters(self) -> dict[str, float]:
        """What else must be kept; the same on all ranks."""
        return self._update.counters()

    def restored(self, counters: dict[str, float]) -> None:
        """Go on: all parts were filled in."""
        self._update.restored(counters)
