"""Running one batch through this rank's chunks: the stage machine, driven by a transport.

``hpcdl.stage`` says what to do and in which order; this file does it. Receives are posted before anything is
computed (see ``mailbox``), and all that has arrived is shown to the machine before it chooses.

Messages of one kind arrive in one order at all ranks of a team, since their senders are a team too. What can
differ is which *kind* has arrived, or whether any has, and the ranks of a team must not differ in what they
do, since they reduce over x, y and z while they compute. So where there is a choice, the first rank of the
team makes it for all (docs/design/004).

Evaluation runs the very same machine: what it sends back are messages without tensors, which say that the
next microbatch may come.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from hpcdl.engine.groups import Peers
from hpcdl.engine.pipeline.mailbox import NUMBERS, Layouts, Mail, Mailbox
from hpcdl.engine.tensor.dropout import Rows
from hpcdl.engine.tensor.later import Later, Work
from hpcdl.engine.timeline import COMPUTE, IDLE, Timeline
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.base import Transport
from hpcdl.engine.transport.packet import Signature, alike
from hpcdl.stage import Action, Cause, Flow, Kind, Message, Operation, Stage

_CAUSES = tuple(Cause)
Tensors = tuple[torch.Tensor, ...]


class Chunks(Protocol):
    """What a rank computes.

    ``chunks`` are called with what comes from the stage before (a tensor, or a tuple if its signature has
    several), the targets and the ``Rows`` of a microbatch. They answer what goes to the stage after, in the
    same form; the last one of the pipeline answers the summed loss.
    """

    chunks: nn.ModuleList
    signatures: Sequence[Signature]  # of what enters each virtual stage; a row is a sequence
    device: torch.device
    later: Later


@dataclass(frozen=True)
class Batch:
    """This rank's share of one batch, cut into microbatches; the last may have fewer rows."""

    inputs: Tensors
    targets: Tensors
    loss_scale: float  # what a token's loss weighs: 1 / tokens of the whole batch
    first: int = 0  # the place of the first row in the whole batch
    step: int | None = None  # None: an evaluation, from which nothing is learned

    @property
    def microbatches(self) -> int:
        """How many."""
        return len(self.inputs)

    @property
    def trains(self) -> bool:
        """Whether there is a backward."""
        return self.step is not None

    def rows(self, microbatch: int) -> Rows | None:
        """Where a microbatch lies in the whole batch; None in an evaluation."""
        if self.step is None:
            return None
        return Rows(self.step, self.first + microbatch * len(self.inputs[0]))


@dataclass(frozen=True)
class Seat:
    """One rank's place in its pipeline."""

    transport: Transport
    topology: Topology
    team: Peers
    timeline: Timeline = field(default_factory=Timeline)


@dataclass(frozen=True)
class _Flight:
    """What a forward leaves for its backward."""

    incoming: Tensors
    outputs: Tensors


class Pass:
    """One batch on its way through one rank.

    Args:
        seat: where this rank sits.
        model: what it computes.
        batch: its share of the batch; stages in the middle read only its shape.
    """

    def __init__(self, seat: Seat, model: Chunks, batch: Batch) -> None:
        self._seat = seat
        self._model = model
        self._batch = batch
        self._flow = _flow(seat.topology, batch)
        self._stage = Stage(seat.topology.stage, self._flow)
        self._mailbox = Mailbox(
            seat.transport,
            seat.topology,
            {kind: _layouts(kind, seat.topology, model, batch) for kind in Kind},
            {kind: self._stage.expected(kind) for kind in Kind},
        )
        self._arrived: dict[Message, Tensors] = {}
        self._flights: dict[tuple[int, int], _Flight] = {}
        self._outgoing: dict[tuple[int, int], Tensors] = {}
        self._owed: dict[tuple[int, int], list[Work]] = {}
        self.loss = torch.zeros((), device=model.device)
        self._do = {
            Operation.FORWARD: self._forward,
            Operation.BACKWARD: self._backward if batch.trains else self._forget,
            Operation.WEIGHT: self._weight,
            Operation.SEND_ACTIVATION: self._send_activation,
            Operation.SEND_GRADIENT: self._send_gradient,
        }

    def run(self) -> torch.Tensor:
        """Every microbatch through every chunk; the summed loss, 0 on all but the last stage."""
        with torch.set_grad_enabled(self._batch.trains):
            while not self._stage.done:
                for action in self._stage.take(self._next()):
                    self._do[action.operation](action)
        self._mailbox.close()
        return self.loss

    def _next(self) -> Cause:
        """What to turn to, the same on all ranks of the team, with its message there."""
        with self._seat.timeline.span(IDLE, "message"):
            cause = self._agree()
            while not self._stage.can_take(cause):
                self._file(self._mailbox.wait())
        return cause

    def _agree(self) -> Cause:
        options = self._stage.options()
        if len(options) == 1:
            return options[0]
        team = self._seat.team
        own = self._choose() if team.index == 0 else options[0]
        return _CAUSES[team.agree(_CAUSES.index(own), self._model.device)]

    def _choose(self) -> Cause:
        while mail := self._mailbox.look():
            self._file(mail)
        while (cause := self._stage.choose()) is None:
            self._file(self._mailbox.wait())
        return cause

    def _file(self, mail: Mail) -> None:
        self._stage.arrive(mail.message)
        self._arrived[mail.message] = mail.tensors

    def _computing(self, action: Action) -> AbstractContextManager[None]:
        timeline, name = self._seat.timeline, action.operation.value
        return timeline.span(COMPUTE, name, chunk=action.chunk, microbatch=action.microbatch)

    def _forward(self, action: Action) -> None:
        chunk, microbatch = action.chunk, action.microbatch
        incoming = self._incoming(chunk, microbatch)
        with self._computing(action):
            arguments = incoming[0] if len(incoming) == 1 else incoming
            targets_BL, rows = self._batch.targets[microbatch], self._batch.rows(microbatch)
            self._model.later.begin((Operation.FORWARD, chunk))
            answer = self._model.chunks[chunk](arguments, targets_BL, rows)
            self._model.later.settle()
        outputs = (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)
        if self._stage.is_last(chunk):
            outputs = (outputs[0] * self._batch.loss_scale,)
            self.loss += outputs[0].detach()
        self._flights[chunk, microbatch] = _Flight(incoming, outputs)

    def _incoming(self, chunk: int, microbatch: int) -> Tensors:
        if self._stage.is_first(chunk):
            return (self._batch.inputs[microbatch],)
        arrived = self._arrived.pop(Message(Kind.ACTIVATION, chunk, microbatch))
        return tuple(tensor.requires_grad_(self._learns(tensor)) for tensor in arrived)

    def _learns(self, tensor: torch.Tensor) -> bool:
        return self._batch.trains and tensor.is_floating_point()

    def _backward(self, action: Action) -> None:
        chunk, microbatch = key = action.chunk, action.microbatch
        flight, later = self._flights.pop(key), self._model.later
        outputs = [tensor for tensor in flight.outputs if tensor.is_floating_point()]
        gradients: Sequence[torch.Tensor | None] = (None,)
        if not self._stage.is_last(chunk):
            gradients = self._arrived.pop(Message(Kind.GRADIENT, chunk, microbatch))
        with self._computing(action):
            later.deferring = self._flow.defer_weights
            later.begin((Operation.BACKWARD, chunk))
            _differentiate(outputs, gradients)
            later.settle()
            later.deferring = False
        if self._flow.defer_weights:
            self._owed[key] = later.take()
        if not self._stage.is_first(chunk):
            self._outgoing[key] = tuple(map(_gradient, filter(self._learns, flight.incoming)))

    def _forget(self, action: Action) -> None:
        """In an evaluation the way back only says that a microbatch is through."""
        key = action.chunk, action.microbatch
        del self._flights[key]
        self._arrived.pop(Message(Kind.GRADIENT, *key), None)
        self._outgoing[key] = ()

    def _weight(self, action: Action) -> None:
        with self._computing(action), torch.no_grad():
            for work in self._owed.pop((action.chunk, action.microbatch)):
                work()
            self._model.later.settle()

    def _send_activation(self, action: Action) -> None:
        outputs = self._flights[action.chunk, action.microbatch].outputs
        self._send(action, tuple(tensor.detach() for tensor in outputs))

    def _send_gradient(self, action: Action) -> None:
        self._send(action, self._outgoing.pop((action.chunk, action.microbatch)))

    def _send(self, action: Action, tensors: Tensors) -> None:
        _, message = self._stage.addressed(action)
        self._mailbox.send(message, len(self._batch.inputs[action.microbatch]), tensors)


def _flow(topology: Topology, batch: Batch) -> Flow:
    d = topology.decomposition
    return Flow(d.pipeline, batch.microbatches, d.interleave, d.in_flight, d.defer_weights and batch.trains)


def _layouts(kind: Kind, topology: Topology, model: Chunks, batch: Batch) -> Layouts:
    ranks = topology.decomposition.pipeline
    neighbour = (topology.stage + (1 if kind is Kind.ACTIVATION else -1)) % ranks
    inbound, outbound = (
        alike(
            [_signature(kind, stage, model, batch) for stage in range(rank, len(model.signatures), ranks)],
            NUMBERS,
            len(batch.inputs[0]),
            model.device,
        )
        for rank in (topology.stage, neighbour)
    )
    return Layouts(inbound, outbound)


def _signature(kind: Kind, stage: int, model: Chunks, batch: Batch) -> Signature:
    """Of what a virtual stage gets: what enters it, or the gradient of what it gave to the one after."""
    if kind is Kind.ACTIVATION:
        return model.signatures[stage] if stage else ()
    if stage + 1 == len(model.signatures) or not batch.trains:
        return ()
    return tuple(field for field in model.signatures[stage + 1] if field.dtype.is_floating_point)


def _differentiate(outputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]) -> None:
    """Back from the outputs that depend on something that learns; not all of a user's own layers do."""
    pairs = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
    if pairs:
        torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Of a tensor that came from the stage before; zeros if nothing depends on it."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
