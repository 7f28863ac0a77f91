"""The one door to other ranks: collectives over groups, and messages between two ranks.

A backend is a class that satisfies ``Transport``. Every operation is started at once and finished
by its handle. The rules that keep it from deadlock: all ranks of a group start the operations of
that group in the same order, and a tensor handed over is left alone until its handle is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import torch

LANES = 2
"""Messages from one rank to another whose tags are equal modulo this share a lane: they keep their order, and
wait for none of another lane."""


class Reduction(Enum):
    """How values of several ranks become one."""

    SUM = "sum"
    MAX = "max"


class Handle(Protocol):
    """An operation under way."""

    def wait(self) -> None:
        """Return when the operation is finished; raise if it failed. A second wait returns at once."""


class Done:
    """The handle of an operation that needed nobody else."""

    def wait(self) -> None:
        """Return at once."""


@dataclass(frozen=True)
class Group:
    """Ranks that take part in collectives together, in the order in which shards are laid."""

    ranks: tuple[int, ...]
    channel: Any = field(repr=False, compare=False)  # what the backend needs to reach them


class Transport(Protocol):
    """Collectives and messages among the ranks of one run. Tensors must be contiguous."""

    rank: int

    @property
    def name(self) -> str:
        """The runtime and its version, as messages call it."""

    def group(self, ranks: tuple[int, ...], lane: str = "") -> Group:
        """The group of ``ranks``; called by each of them, once a run and lane, after equally many others.

        What is started in one lane does not queue behind what was started in another.
        """

    def connect(self, peers: Sequence[int]) -> None:
        """Get ready for messages to and from ``peers``; called by all ranks once, after all groups."""

    def all_reduce(self, tensor: torch.Tensor, group: Group, reduction: Reduction = Reduction.SUM) -> Handle:
        """Reduce ``tensor`` in place over ``group``."""

    def all_gather(self, whole: torch.Tensor, shard: torch.Tensor, group: Group) -> Handle:
        """Fill the flat ``whole`` with every rank's flat ``shard``, in group order."""

    def reduce_scatter(self, shard: torch.Tensor, whole: torch.Tensor, group: Group) -> Handle:
        """Sum the flat ``whole`` over ``group`` and keep this rank's part in ``shard``."""

    def broadcast(self, tensor: torch.Tensor, group: Group) -> Handle:
        """Copy ``tensor`` of the group's first rank to all others."""

    def barrier(self) -> None:
        """Return when every rank of the run has come here."""

    def send(self, tensor: torch.Tensor, peer: int, tag: int) -> Handle:
        """Send ``tensor`` to rank ``peer``."""

    def receive(self, buffer: torch.Tensor, peer: int, tag: int) -> Handle:
        """Receive what ``peer`` sends with ``tag`` into ``buffer``."""

    def first(self, receives: Sequence[Handle]) -> int:
        """Wait until one of the posted ``receives`` is finished, and say which."""

    def arrived(self, receives: Sequence[Handle]) -> int | None:
        """Which of the posted ``receives`` is finished, if any is; returns at once."""

    def close(self) -> None:
        """Leave the run; nothing may be sent or received after."""
