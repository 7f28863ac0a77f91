"""What one pipeline stage does next: messages in, actions out.

The pipeline of AxoNN (Singh and Bhatele, IPDPS 2022, Algorithms 1 and 2) has no static
schedule. A stage waits for a message and *the sender decides the operation*: an activation
from the stage before means forward, a gradient from the stage after means backward.

    stage 0          stage 1          stage 2 (last)
    forward 0 ──a──▶ forward 0 ──a──▶ forward 0, backward 0
    forward 1 ──a──▶ backward 0 ◀─g──
    backward 0 ◀─g── forward 1 ──a──▶ ...

Only stage 0 creates work. It starts ``limit`` microbatches and injects the next one whenever a
gradient returns, so never more than ``limit`` microbatches are in flight and every stage holds
at most that many activations. The machine does no I/O: the engine executes its actions over a
transport, the planner drives the same machine with a clock, and tests deliver messages in any
order. An illegal message raises and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a message carries, and thereby where it comes from."""

    ACTIVATION = "activation"  # from the stage before
    GRADIENT = "gradient"  # from the stage after


class Operation(Enum):
    """What a stage can be told to do with a microbatch."""

    FORWARD = "forward"
    BACKWARD = "backward"
    SEND_ACTIVATION = "send activation"  # the output of the forward, to the stage after
    SEND_GRADIENT = "send gradient"  # the gradient of the input, to the stage before


@dataclass(frozen=True)
class Message:
    """One tensor that arrived for one microbatch."""

    kind: Kind
    microbatch: int


@dataclass(frozen=True)
class Action:
    """One thing to do; actions of one answer are done in order."""

    operation: Operation
    microbatch: int


class ProtocolError(Exception):
    """A message that this stage cannot have been sent."""


class Stage:
    """The state of one pipeline stage during one batch.

    Args:
        index: which stage, 0 is the first.
        stages: how many stages the pipeline has.
        microbatches: how many microbatches one batch is cut into.
        limit: how many microbatches may be in flight; ``None`` means one a stage (AxoNN's choice).
    """

    def __init__(self, index: int, stages: int, microbatches: int, limit: int | None = None) -> None:
        if not 0 <= index < stages:
            raise ValueError(f"stage {index} does not exist in a pipeline of {stages} stages")
        if microbatches < 1:
            raise ValueError(f"a batch needs at least one microbatch, not {microbatches}")
        if limit is not None and limit < 1:
            raise ValueError(f"at least one microbatch must be in flight, not {limit}")
        self.index = index
        self.stages = stages
        self.microbatches = microbatches
        self.limit = min(limit or stages, microbatches)
        self._injected = 0
        self._forwarded: set[int] = set()
        self._finished: set[int] = set()

    @property
    def is_first(self) -> bool:
        """Whether this stage reads the data."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage computes the loss."""
        return self.index == self.stages - 1

    @property
    def done(self) -> bool:
        """Whether every microbatch went through backward here."""
        return len(self._finished) == self.microbatches

    @property
    def in_flight(self) -> int:
        """Microbatches whose activations this stage holds."""
        return len(self._forwarded) - len(self._finished)

    def expected(self, kind: Kind) -> int:
        """How many messages of ``kind`` this stage receives in a batch."""
        from_nobody = self.is_first if kind is Kind.ACTIVATION else self.is_last
        return 0 if from_nobody else self.microbatches

    def start(self) -> list[Action]:
        """What to do before any message: the first stage fills the pipeline, the others wait."""
        if not self.is_first or self._injected:
            return []
        return [action for _ in range(self.limit) for action in self._inject()]

    def receive(self, message: Message) -> list[Action]:
        """What to do about ``message``.

        Raises:
            ProtocolError: the message is impossible here; the stage is unchanged.
        """
        self._check(message)
        if message.kind is Kind.ACTIVATION:
            return self._forward(message.microbatch)
        actions = self._backward(message.microbatch)
        return actions + self._inject() if self.is_first else actions

    def _check(self, message: Message) -> None:
        microbatch = message.microbatch
        where = f"stage {self.index} of {self.stages}"
        if not 0 <= microbatch < self.microbatches:
            raise ProtocolError(f"{where}: microbatch {microbatch} of {self.microbatches} does not exist")
        if not self.expected(message.kind):
            raise ProtocolError(f"{where} receives no {message.kind.value}")
        if message.kind is Kind.ACTIVATION and microbatch in self._forwarded:
            raise ProtocolError(f"{where}: the activation of microbatch {microbatch} came twice")
        if message.kind is Kind.GRADIENT and microbatch not in self._forwarded:
            raise ProtocolError(
                f"{where}: the gradient of microbatch {microbatch} came before its activation left"
            )
        if message.kind is Kind.GRADIENT and microbatch in self._finished:
            raise ProtocolError(f"{where}: the gradient of microbatch {microbatch} came twice")

    def _inject(self) -> list[Action]:
        """Start the next microbatch and, in a pipeline of one stage, all that follow it."""
        actions: list[Action] = []
        while self._injected < self.microbatches:
            actions += self._forward(self._injected)
            self._injected += 1
            if not self.is_last:
                break
        return actions

    def _forward(self, microbatch: int) -> list[Action]:
        self._forwarded.add(microbatch)
        forward = Action(Operation.FORWARD, microbatch)
        if self.is_last:
            return [forward, *self._backward(microbatch)]
        return [forward, Action(Operation.SEND_ACTIVATION, microbatch)]

    def _backward(self, microbatch: int) -> list[Action]:
        self._finished.add(microbatch)
        backward = Action(Operation.BACKWARD, microbatch)
        return [backward] if self.is_first else [backward, Action(Operation.SEND_GRADIENT, microbatch)]
