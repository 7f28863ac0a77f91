"""What one rank of a pipeline does next: messages in, actions out.

The pipeline of AxoNN (Singh and Bhatele, IPDPS 2022, Algorithms 1 and 2) has no static schedule. A rank waits
for a message and *the sender decides the operation*: an activation from the stage before means forward, a
gradient from the stage after means backward.

    stage 0          stage 1          stage 2 (last)
    forward 0 ──a──▶ forward 0 ──a──▶ forward 0, backward 0
    forward 1 ──a──▶ backward 0 ◀─g──
    backward 0 ◀─g── forward 1 ──a──▶ ...

Only stage 0 creates work: it lets a microbatch in while fewer than ``limit`` are in flight, so no stage holds
more activations than that. Two things are added to AxoNN's pipeline:

- A rank may hold several *chunks* of the model (interleaving; Narayanan et al., SC'21, arXiv 2104.04473,
  section 2.2). Chunk c of rank r is virtual stage c·p + r, so the ranks form a ring that a microbatch goes
  around once a chunk.
- The gradients of weights may be *deferred* (Qi et al., ICLR 2024, arXiv 2401.10241): a backward then
  computes only the gradient that the stage before waits for, and the rest follows when nothing has arrived.

A rank never waits for one message while another is there. Where it has both a gradient and something to send
forward, it takes them in turn, or with several chunks what brings it nearer to the activations that a static
table would hold; deferred work comes last; messages of one kind are served in order of arrival.
The machine does no I/O: the engine executes its actions over a transport, the planner drives the same machine
with a clock, and tests deliver messages in any order. An illegal message raises and changes nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise


class _Named(Enum):
    """Hashed by identity: Enum hashes the name, in Python, which was a tenth of a simulation."""

    __hash__ = object.__hash__


class Kind(_Named):
    """What a message carries, and thereby where it comes from."""

    ACTIVATION = "activation"  # from the stage before
    GRADIENT = "gradient"  # from the stage after


class Cause(_Named):
    """Why a rank does something."""

    GRADIENT = "gradient"  # the oldest one that arrived
    ACTIVATION = "activation"  # the oldest one that arrived
    DATA = "data"  # a microbatch that may enter the pipeline
    WEIGHT = "weight"  # the oldest work that was deferred


class Operation(_Named):
    """What a rank can be told to do with a microbatch in one of its chunks."""

    FORWARD = "forward"
    BACKWARD = "backward"  # all of it, or without what is deferred
    WEIGHT = "weight"  # what a backward deferred
    SEND_ACTIVATION = "send activation"  # the output of the forward, to the stage after
    SEND_GRADIENT = "send gradient"  # the gradient of the input, to the stage before


@dataclass(frozen=True)
class Message:
    """What arrived for one chunk and microbatch."""

    kind: Kind
    chunk: int  # of the receiver
    microbatch: int


@dataclass(frozen=True)
class Action:
    """One thing to do; actions of one answer are done in order."""

    operation: Operation
    chunk: int
    microbatch: int


class ProtocolError(Exception):
    """A message that this rank cannot have been sent, or a cause that it does not have."""


@dataclass(frozen=True)
class Flow:
    """How one batch flows through a pipeline; the same on all its ranks.

    Attributes:
        ranks: how many the pipeline has.
        microbatches: how many the batch is cut into.
        chunks: virtual stages a rank.
        in_flight: microbatches in the pipeline at once; None: one and a quarter a rank, two where chunks
            are interleaved; one and one and a half where weights are deferred (docs/design/005 has the
            measurements).
        defer_weights: whether gradients of weights wait until nothing else is to be done.
    """

    ranks: int
    microbatches: int
    chunks: int = 1
    in_flight: int | None = None
    defer_weights: bool = False

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.chunks < 1 or (self.ranks == 1 and self.chunks > 1):
            raise ValueError(f"no pipeline has {self.ranks} ranks with {self.chunks} stages each")
        if self.microbatches < 1:
            raise ValueError(f"a batch needs at least one microbatch, not {self.microbatches}")
        if self.in_flight is not None and self.in_flight < 1:
            raise ValueError(f"at least one microbatch must be in flight, not {self.in_flight}")

    @property
    def limit(self) -> int:
        """Microbatches in flight at most."""
        return min(self.in_flight or self._enough, self.microbatches)

    @property
    def _enough(self) -> int:
        if self.ranks == 1:
            return 1
        quarters = (6 if self.chunks > 1 else 4) if self.defer_weights else (8 if self.chunks > 1 else 5)
        return -(-self.ranks * quarters // 4)


class Stage:
    """The state of one rank of a pipeline during one batch.

    Args:
        index: which rank, 0 is the first.
        flow: the pipeline and the batch.
    """

    def __init__(self, index: int, flow: Flow) -> None:
        if not 0 <= index < flow.ranks:
            raise ValueError(f"stage {index} does not exist in a pipeline of {flow.ranks} ranks")
        self.index = index
        self.flow = flow
        self._went = [0] * flow.chunks  # forwards of each chunk
        self._back = [0] * flow.chunks  # and backwards
        self._turned = False  # whether the last message or microbatch went backward
        self._arrived: dict[Kind, deque[Message]] = {kind: deque() for kind in Kind}
        self._forwarded: set[tuple[int, int]] = set()
        self._finished: set[tuple[int, int]] = set()
        self._owed: deque[tuple[int, int]] = deque()

    def is_first(self, chunk: int) -> bool:
        """Whether ``chunk`` here reads the data."""
        return self.index == 0 and chunk == 0

    def is_last(self, chunk: int) -> bool:
        """Whether ``chunk`` here computes the loss."""
        return self.index == self.flow.ranks - 1 and chunk == self.flow.chunks - 1

    @property
    def done(self) -> bool:
        """Whether every microbatch went through backward in every chunk here, and nothing is owed."""
        return len(self._finished) == self.flow.chunks * self.flow.microbatches and not self._owed

    @property
    def holds(self) -> int:
        """Activations that this rank holds, counted in microbatches of one chunk."""
        return sum(self._went) - sum(self._back) + len(self._owed)

    @property
    def in_flight(self) -> int:
        """Microbatches that chunk 0 here sent on and did not get back."""
        return self._went[0] - self._back[0]

    def addressed(self, action: Action) -> tuple[int, Message]:
        """Which rank a send of this one goes to, and the message that arrives there."""
        forward = action.operation is Operation.SEND_ACTIVATION
        virtual = action.chunk * self.flow.ranks + self.index + (1 if forward else -1)
        chunk, index = divmod(virtual, self.flow.ranks)
        return index, Message(Kind.ACTIVATION if forward else Kind.GRADIENT, chunk, action.microbatch)

    def expected(self, kind: Kind) -> int:
        """How many messages of ``kind`` this rank receives in a batch."""
        if kind is Kind.ACTIVATION:
            chunks = sum(not self.is_first(chunk) for chunk in range(self.flow.chunks))
        else:
            chunks = sum(not self.is_last(chunk) for chunk in range(self.flow.chunks))
        return chunks * self.flow.microbatches

    def arrive(self, message: Message) -> None:
        """Take note of ``message``; it is served when ``take`` is told to.

        Raises:
            ProtocolError: the message is impossible here; nothing has changed.
        """
        self._check(message)
        self._arrived[message.kind].append(message)

    def options(self) -> list[Cause]:
        """What this rank may come to do next.

        It depends only on what was taken so far, so ranks that take the same causes in the same order have
        the same options, whatever has arrived at each of them.
        """
        possible = {
            Cause.GRADIENT: self._may_return(),
            Cause.ACTIVATION: self._may_come(),
            Cause.DATA: self._may_enter(),
            Cause.WEIGHT: bool(self._owed),
        }
        return [cause for cause in Cause if possible[cause]]

    def can_take(self, cause: Cause) -> bool:
        """Whether ``cause`` is there now."""
        kind = _MESSAGES.get(cause)
        if kind:
            return bool(self._arrived[kind])
        return self._may_enter() if cause is Cause.DATA else bool(self._owed)

    def choose(self) -> Cause | None:
        """What to take of all that is there now; None if this rank can only wait for a message."""
        return next(filter(self.can_take, _FORWARD_FIRST if self._goes_forward else _BACKWARD_FIRST), None)

    def take(self, cause: Cause) -> list[Action]:
        """What to do about ``cause``.

        Raises:
            ProtocolError: there is none; nothing has changed.
        """
        if not self.can_take(cause):
            raise ProtocolError(f"{self._where}: there is no {cause.value} to take")
        if cause is Cause.WEIGHT:
            return [self._weight()]
        self._turned = cause is Cause.GRADIENT
        if cause is Cause.DATA:
            return self._forward(0, self._went[0])
        kind = _MESSAGES[cause]
        message = self._arrived[kind].popleft()
        work = self._forward if kind is Kind.ACTIVATION else self._backward
        return work(message.chunk, message.microbatch)

    @property
    def _goes_forward(self) -> bool:
        """Whether forward comes first where both ways are open."""
        if self.flow.chunks > 1 and self.holds != self._aim:
            return self.holds < self._aim
        return self._turned

    @property
    def _aim(self) -> int:
        """``holds`` in the steady state of interleaved 1F1B (Narayanan et al., SC'21, section 2.2)."""
        after = self.flow.ranks - 1 - self.index
        return 2 * after + (self.flow.chunks - 1) * self.flow.ranks + 1

    @property
    def _where(self) -> str:
        return f"stage {self.index} of {self.flow.ranks}"

    def _may_enter(self) -> bool:
        return self.index == 0 and self._has_room()

    def _may_come(self) -> bool:
        """Whether an activation can be on its way: into chunk 0, or from one chunk here to the next."""
        return (self.index > 0 and self._has_room()) or any(a > b for a, b in pairwise(self._went))

    def _may_return(self) -> bool:
        """Whether a gradient can be on its way: into the last chunk, or from a chunk to the one before."""
        is_end = self.is_last(self.flow.chunks - 1)
        return (not is_end and self._went[-1] > self._back[-1]) or any(a < b for a, b in pairwise(self._back))

    def _has_room(self) -> bool:
        return self._went[0] < self.flow.microbatches and self.in_flight < self.flow.limit

    def _check(self, message: Message) -> None:
        chunk, microbatch, kind = message.chunk, message.microbatch, message.kind
        if not 0 <= microbatch < self.flow.microbatches:
            raise ProtocolError(
                f"{self._where}: microbatch {microbatch} of {self.flow.microbatches} does not exist"
            )
        if not 0 <= chunk < self.flow.chunks:
            raise ProtocolError(f"{self._where}: chunk {chunk} of {self.flow.chunks} does not exist")
        if self.is_first(chunk) if kind is Kind.ACTIVATION else self.is_last(chunk):
            raise ProtocolError(f"{self._where} receives no {kind.value} for chunk {chunk}")
        problem = self._problem(message)
        if problem:
            what = f"{self._where}: the {kind.value} of microbatch {microbatch} for chunk {chunk}"
            raise ProtocolError(f"{what} came {problem}")

    def _problem(self, message: Message) -> str | None:
        """What is wrong with a message that comes now."""
        chunk, microbatch, kind = message.chunk, message.microbatch, message.kind
        ends = self._forwarded if kind is Kind.ACTIVATION else self._finished
        if (chunk, microbatch) in ends or message in self._arrived[kind]:
            return "twice"
        if kind is Kind.GRADIENT and (chunk, microbatch) not in self._forwarded:
            return "before its activation left"
        if kind is Kind.ACTIVATION and chunk and (chunk - 1, microbatch) not in self._forwarded:
            return f"before chunk {chunk - 1} sent its own"
        after = (chunk + 1, microbatch)
        if kind is Kind.GRADIENT and chunk + 1 < self.flow.chunks and after not in self._finished:
            return f"before chunk {chunk + 1} sent its own"
        return None

    def _forward(self, chunk: int, microbatch: int) -> list[Action]:
        # Deferred work holds activations: a rank does not defer beyond what its flow may hold anyway.
        room = [self._weight()] if self._owed and self.holds >= self.flow.limit * self.flow.chunks else []
        self._forwarded.add((chunk, microbatch))
        self._went[chunk] += 1
        forward = Action(Operation.FORWARD, chunk, microbatch)
        if self.is_last(chunk):
            return [*room, forward, *self._backward(chunk, microbatch)]
        return [*room, forward, Action(Operation.SEND_ACTIVATION, chunk, microbatch)]

    def _backward(self, chunk: int, microbatch: int) -> list[Action]:
        self._finished.add((chunk, microbatch))
        self._back[chunk] += 1
        actions = [Action(Operation.BACKWARD, chunk, microbatch)]
        if not self.is_first(chunk):
            actions.append(Action(Operation.SEND_GRADIENT, chunk, microbatch))
        if self.flow.defer_weights:
            self._owed.append((chunk, microbatch))
        return actions

    def _weight(self) -> Action:
        return Action(Operation.WEIGHT, *self._owed.popleft())


_FORWARD_FIRST = (Cause.ACTIVATION, Cause.DATA, Cause.GRADIENT, Cause.WEIGHT)
_BACKWARD_FIRST = (Cause.GRADIENT, Cause.ACTIVATION, Cause.DATA, Cause.WEIGHT)
_MESSAGES = {Cause.ACTIVATION: Kind.ACTIVATION, Cause.GRADIENT: Kind.GRADIENT}
