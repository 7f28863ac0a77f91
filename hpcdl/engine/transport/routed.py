"""Several runtimes behind one door: each call goes to the one that a pure choice names.

What keeps it from deadlock. The choice sees only what all ranks of the call know, so they choose alike.
Groups are made in every runtime that may carry a collective when the run begins, in the order in which all
ranks make theirs. One runtime carries all messages, because posted receives are raced against each other
and no runtime can wait for another's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from hpcdl.engine.transport.base import Group, Handle, Reduction, Transport


@dataclass(frozen=True)
class Call:
    """What every rank of a collective knows of it before it starts."""

    operation: Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast"]
    bytes: int  # of the whole: what is reduced, gathered, scattered or told
    ranks: int
    device: str  # cpu or cuda


Choice = Callable[[Call], str]
"""The name of the runtime of one collective; a pure function."""


@dataclass(frozen=True)
class Routes:
    """Who carries what, the same on all ranks."""

    messages: str  # the runtime of all messages, and of barriers
    collectives: tuple[str, ...]  # what ``choose`` may answer
    choose: Choice


def split(messages: str, collectives: str) -> Routes:
    """All messages over one runtime, all collectives over another."""
    return Routes(messages, (collectives,), lambda _: collectives)


class Routed:
    """One rank's door to several runtimes.

    Args:
        runtimes: by name, in the order in which they are closed.
        routes: which of them carries what.
    """

    def __init__(self, runtimes: Mapping[str, Transport], routes: Routes) -> None:
        self._runtimes = runtimes
        self._routes = routes
        self._messages = runtimes[routes.messages]
        self.rank = self._messages.rank

    @property
    def name(self) -> str:
        """All runtimes."""
        return " + ".join(runtime.name for runtime in self._runtimes.values())

    def group(self, ranks: tuple[int, ...], lane: str = "") -> Group:
        """The group of ``ranks`` in every runtime that may carry its collectives."""
        return Group(
            ranks, {name: self._runtimes[name].group(ranks, lane) for name in self._routes.collectives}
        )

    def connect(self, peers: Sequence[int]) -> None:
        """Get the runtime of the messages ready for them."""
        self._messages.connect(peers)

    def _to(self, call: Call, group: Group) -> tuple[Transport, Group]:
        name = self._routes.choose(call)
        return self._runtimes[name], group.channel[name]

    def all_reduce(self, tensor: torch.Tensor, group: Group, reduction: Reduction = Reduction.SUM) -> Handle:
        """Reduce ``tensor`` in place over ``group``."""
        runtime, there = self._to(_call("all_reduce", tensor, group), group)
        return runtime.all_reduce(tensor, there, reduction)

    def all_gather(self, whole: torch.Tensor, shard: torch.Tensor, group: Group) -> Handle:
        """Fill the flat ``whole`` with every rank's flat ``shard``."""
        runtime, there = self._to(_call("all_gather", whole, group), group)
        return runtime.all_gather(whole, shard, there)

    def reduce_scatter(self, shard: torch.Tensor, whole: torch.Tensor, group: Group) -> Handle:
        """Sum the flat ``whole`` over ``group`` and keep this rank's part in ``shard``."""
        runtime, there = self._to(_call("reduce_scatter", whole, group), group)
        return runtime.reduce_scatter(shard, whole, there)

    def broadcast(self, tensor: torch.Tensor, group: Group) -> Handle:
        """Copy ``tensor`` of the group's first rank to all others."""
        runtime, there = self._to(_call("broadcast", tensor, group), group)
        return runtime.broadcast(tensor, there)

    def barrier(self) -> None:
        """Return when every rank of the run has come here."""
        self._messages.barrier()

    def send(self, tensor: torch.Tensor, peer: int, tag: int) -> Handle:
        """Send ``tensor`` to rank ``peer``."""
        return self._messages.send(tensor, peer, tag)

    def receive(self, buffer: torch.Tensor, peer: int, tag: int) -> Handle:
        """Receive what ``peer`` sends with ``tag`` into ``buffer``."""
        return self._messages.receive(buffer, peer, tag)

    def first(self, receives: Sequence[Handle]) -> int:
        """Wait until one of the posted ``receives`` is finished, and say which."""
        return self._messages.first(receives)

    def arrived(self, receives: Sequence[Handle]) -> int | None:
        """Which of the posted ``receives`` is finished, if any is; returns at once."""
        return self._messages.arrived(receives)

    def close(self) -> None:
        """Leave every runtime, one after the other, when all ranks are ready to."""
        for runtime in self._runtimes.values():
            runtime.close()


def _call(
    operation: Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast"],
    whole: torch.Tensor,
    group: Group,
) -> Call:
    return Call(operation, whole.numel() * whole.element_size(), len(group.ranks), whole.device.type)
