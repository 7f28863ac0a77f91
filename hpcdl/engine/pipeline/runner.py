"""Running one batch through this rank's stage: the stage machine, driven by a transport.

``hpcdl.stage`` says what to do; this file does it. A receive of each direction is posted before
anything is computed, and posted again before the message that arrived is computed on, so at most
one is outstanding a direction (Singh and Bhatele, IPDPS 2022, section IV). Sends are not waited
for until they must be finished: a gradient that comes back proves that its activation arrived.

Each direction is first in, first out, because every stage forwards in order of arrival. What can
differ between the ranks of one stage is which *direction* is served first, and they must not
differ, since they reduce over x, y and z while they compute. So where there is a choice, the first
rank of the team makes it for all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hpcdl.engine.groups import Peers
from hpcdl.engine.models.build import StageModel
from hpcdl.engine.timeline import COMPUTE, IDLE, Timeline
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.base import Handle, Transport
from hpcdl.stage import Action, Kind, Message, Operation, Stage

_KINDS = (Kind.ACTIVATION, Kind.GRADIENT)
_COMPUTED = (Operation.FORWARD, Operation.BACKWARD)


@dataclass(frozen=True)
class Batch:
    """This rank's share of one batch, cut into microbatches."""

    inputs_MBL: torch.Tensor
    targets_MBL: torch.Tensor
    loss_scale: float  # what a token's loss weighs: 1 / tokens of the whole batch

    @property
    def microbatches(self) -> int:
        """How many."""
        return len(self.inputs_MBL)


@dataclass(frozen=True)
class Seat:
    """One rank's place in its pipeline."""

    transport: Transport
    topology: Topology
    team: Peers
    timeline: Timeline = field(default_factory=Timeline)


@dataclass(frozen=True)
class _Posted:
    handle: Handle
    buffer: torch.Tensor
    microbatch: int


@dataclass(frozen=True)
class _Flight:
    """What a forward leaves for its backward."""

    incoming: torch.Tensor
    output: torch.Tensor


class Pass:
    """One batch on its way through one stage.

    Args:
        seat: where this rank sits.
        model: its stage.
        batch: its share of the batch; stages in the middle read only its shape.
    """

    def __init__(self, seat: Seat, model: StageModel, batch: Batch) -> None:
        topology = seat.topology
        self._seat = seat
        self._model = model
        self._batch = batch
        self._stage = Stage(topology.stage, topology.decomposition.pipeline, batch.microbatches)
        self._posted: dict[Kind, _Posted] = {}
        self._flights: dict[int, _Flight] = {}
        self._arrived: dict[tuple[Kind, int], torch.Tensor] = {}
        self._outgoing: dict[int, torch.Tensor] = {}
        self._sends: dict[tuple[Kind, int], Handle] = {}
        self.loss = torch.zeros((), device=batch.inputs_MBL.device)
        self._do = {
            Operation.FORWARD: self._forward,
            Operation.BACKWARD: self._backward,
            Operation.SEND_ACTIVATION: self._send_activation,
            Operation.SEND_GRADIENT: self._send_gradient,
        }

    def run(self) -> torch.Tensor:
        """Every microbatch forward and backward; the summed loss, 0 on all but the last stage."""
        for kind in _KINDS:
            self._post(kind, 0)
        self._execute(self._stage.start())
        while self._posted:
            self._execute(self._stage.receive(self._next_message()))
        for handle in self._sends.values():
            handle.wait()
        return self.loss

    def _execute(self, actions: list[Action]) -> None:
        for action in actions:
            if action.operation in _COMPUTED:
                name = action.operation.value
                with self._seat.timeline.span(COMPUTE, name, microbatch=action.microbatch):
                    self._do[action.operation](action.microbatch)
            else:
                self._do[action.operation](action.microbatch)

    def _peer(self, kind: Kind) -> int:
        """Who sends messages of ``kind`` here."""
        topology = self._seat.topology
        peer = topology.previous if kind is Kind.ACTIVATION else topology.next
        assert peer is not None, f"stage {topology.stage} receives no {kind.value}"  # noqa: S101 - for mypy
        return peer

    def _post(self, kind: Kind, microbatch: int) -> None:
        if microbatch >= self._stage.expected(kind):
            return
        size, length = self._batch.inputs_MBL.shape[1:]
        buffer = torch.empty(
            (size, length, self._model.width), dtype=self._model.dtype, device=self.loss.device
        )
        handle = self._seat.transport.receive(buffer, self._peer(kind), _tag(kind, microbatch))
        self._posted[kind] = _Posted(handle, buffer, microbatch)

    def _next_message(self) -> Message:
        with self._seat.timeline.span(IDLE, "idle"):
            kind = self._choose()
            posted = self._posted.pop(kind)
            posted.handle.wait()
        self._post(kind, posted.microbatch + 1)
        self._arrived[kind, posted.microbatch] = posted.buffer
        return Message(kind, posted.microbatch)

    def _choose(self) -> Kind:
        """The direction to serve next, the same on all ranks of the team."""
        kinds = [kind for kind in _KINDS if kind in self._posted]
        if len(kinds) == 1:
            return kinds[0]
        choice = 0
        if self._seat.team.index == 0:
            choice = self._seat.transport.first([self._posted[kind].handle for kind in kinds])
        return kinds[self._seat.team.agree(choice, self.loss.device)]

    def _forward(self, microbatch: int) -> None:
        if self._stage.is_first:
            incoming = self._batch.inputs_MBL[microbatch]
        else:
            incoming = self._arrived.pop((Kind.ACTIVATION, microbatch)).requires_grad_()
        output = self._model(incoming, self._batch.targets_MBL[microbatch])
        if self._stage.is_last:
            output = output * self._batch.loss_scale
            self.loss += output.detach()
        self._flights[microbatch] = _Flight(incoming, output)

    def _backward(self, microbatch: int) -> None:
        flight = self._flights.pop(microbatch)
        if self._stage.is_last:
            flight.output.backward()  # type: ignore[no-untyped-call]
        else:
            self._sends.pop((Kind.ACTIVATION, microbatch)).wait()
            gradient = self._arrived.pop((Kind.GRADIENT, microbatch))
            flight.output.backward(gradient)  # type: ignore[no-untyped-call]
        if not self._stage.is_first:
            assert flight.incoming.grad is not None  # noqa: S101 - for mypy
            self._outgoing[microbatch] = flight.incoming.grad

    def _send_activation(self, microbatch: int) -> None:
        self._send(Kind.ACTIVATION, microbatch, self._flights[microbatch].output.detach())

    def _send_gradient(self, microbatch: int) -> None:
        self._send(Kind.GRADIENT, microbatch, self._outgoing.pop(microbatch))
        # The stage before always has its next receive posted, so the oldest send is the first to go.
        sent = [key for key in self._sends if key[0] is Kind.GRADIENT]
        if len(sent) > self._stage.limit:
            self._sends.pop(sent[0]).wait()

    def _send(self, kind: Kind, microbatch: int, tensor: torch.Tensor) -> None:
        topology = self._seat.topology
        peer = topology.next if kind is Kind.ACTIVATION else topology.previous
        assert peer is not None  # noqa: S101 - for mypy
        handle = self._seat.transport.send(tensor.contiguous(), peer, _tag(kind, microbatch))
        self._sends[kind, microbatch] = handle


def _tag(kind: Kind, microbatch: int) -> int:
    """Tells messages apart, whatever their order."""
    return 2 * microbatch + _KINDS.index(kind)
