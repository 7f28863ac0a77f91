"""Summing gradients over the ranks that read different sequences, while backward still runs.

How many gradients each parameter gets in a batch is known, so a chunk (see ``optim.flat``) is complete when
the last of its parameters has them all; then, if all chunks before it are on their way, its reduction starts.
So every rank starts the same reductions in the same order. The loss is already divided by the tokens of the
whole batch, so a sum is the mean.

A weight that is cut over z arrives here reduced over z (Algorithm 1) and is summed over data; what every z
rank holds whole is summed over data × z. A tied embedding that two stages hold is then summed over the two.
With ZeRO-1 the sum is scattered: a rank gets the share that it updates, and what it made of it is gathered.

Transports reach the memory of the device. What lies on the host goes through room for a chunk there, and few
chunks are under way at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial

import torch
from torch.utils.hooks import RemovableHandle

from hpcdl.engine.groups import Coming, Peers
from hpcdl.engine.optim.bucket import Chunk, Slot
from hpcdl.engine.optim.flat import Flat
from hpcdl.engine.tensor.deliver import Delivery

_AWAY = 2
"""Chunks that lie on the host and are reduced at once."""


class _Reach:
    """Where ``peers`` reach the tensors of a chunk: there, or what lies on the host in room on the device."""

    def __init__(self, chunk: Chunk, peers: Peers, device: torch.device) -> None:
        self._device = device if chunk.kind.on_host and peers.size > 1 else None

    def room(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor``, or room for it on the device."""
        return tensor if self._device is None else torch.empty_like(tensor, device=self._device)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor``, or a copy of it on the device."""
        return tensor if self._device is None else self.room(tensor).copy_(tensor)


def _bring(coming: Coming, tensor: torch.Tensor) -> None:
    """Bring what was made in ``tensor``, or in room for it, to ``tensor``."""
    made = coming.wait()
    if made is not tensor:
        tensor.copy_(made)


class _Home:
    """One chunk, and how many gradients it still waits for."""

    def __init__(self, chunk: Chunk, device: torch.device) -> None:
        self.chunk = chunk
        self.missing = 0
        self._device = device
        self._coming: Coming | None = None

    def reduce(self) -> None:
        chunk = self.chunk
        reach = _Reach(chunk, chunk.peers, self._device)
        whole = reach.copy(chunk.gradient)
        own = reach.room(chunk.own_gradient) if chunk.sharded else whole
        handle = chunk.peers.reduce_scatter(own, whole) if chunk.sharded else chunk.peers.all_reduce(whole)
        self._coming = Coming(own, handle)

    def finish(self) -> None:
        """Return when the sum is there."""
        if self._coming is not None:
            _bring(self._coming, self.chunk.own_gradient)
            self._coming = None

    def meet(self, ends: Peers) -> None:
        """Add what the other end of the pipeline has."""
        own = self.chunk.own_gradient
        reached = _Reach(self.chunk, ends, self._device).copy(own)
        _bring(Coming(reached, ends.all_reduce(reached)), own)


class _Arrivals:
    """The gradients of one parameter in one batch."""

    def __init__(self, slot: Slot, homes: list[_Home]) -> None:
        self.slot = slot
        self.homes = homes
        self._come = 0

    def expect(self, times: int) -> None:
        self._come = 0
        for home in self.homes:
            home.missing += times
        if not times:
            self.slot.gradient.zero_()

    def add(self, gradient: torch.Tensor) -> None:
        # The first is copied, so nobody has to write zeros first.
        into = self.slot.gradient
        (into.add_ if self._come else into.copy_)(self.slot.trained(gradient))
        self._come += 1
        for home in self.homes:
            home.missing -= 1

    def close(self) -> None:
        """No more will come."""
        if not self._come:
            self.slot.gradient.zero_()


class Gradients:
    """The gradients of one rank on their way.

    Args:
        flat: where they lie.
        ends: the ranks that share a tied embedding.
        early: whether reductions start while backward still runs.
    """

    def __init__(self, flat: Flat, ends: Peers, *, early: bool) -> None:
        self._ends = ends
        self._early = early
        self._device = flat.device
        self._homes = [_Home(chunk, flat.device) for chunk in flat.chunks]
        self._away: deque[_Home] = deque()
        self._delivery = Delivery(flat.thrift.host) if flat.thrift.host and flat.thrift.matrices else None
        self._arrivals = [
            _Arrivals(slot, [home for home in self._homes if slot.name in home.chunk.names])
            for slot in flat.slots
        ]
        self._launched = 0
        self._gathers: list[tuple[Coming, Chunk]] = []
        self.slots = flat.slots
        self._hooks: list[RemovableHandle] = []
        for arrivals in self._arrivals:
            self._attach(arrivals)

    def _attach(self, arrivals: _Arrivals) -> None:
        """Let every gradient of a parameter come into its buffer, and be counted."""
        deposit = arrivals.slot.held.deposit

        def arrived(gradient: torch.Tensor) -> None:
            arrivals.add(gradient)
            if self._early:
                self._launch()

        def accumulated(computed: torch.Tensor) -> None:
            assert computed.grad is not None  # noqa: S101 - for mypy
            arrived(computed.grad)
            computed.grad = None

        deposit.add = arrived
        if arrivals.slot.on_host and self._delivery is not None:
            deposit.add = partial(self._delivery.bring, add=arrived)
        if deposit.by_autograd:
            hook = arrivals.slot.parameter.register_post_accumulate_grad_hook(accumulated)  # type: ignore[no-untyped-call]
            self._hooks.append(hook)

    def release(self) -> None:
        """Take no more gradients: others do from now on."""
        for hook in self._hooks:
            hook.remove()

    def begin(self, microbatches: int) -> None:
        """Begin a batch of so many microbatches."""
        for home in self._homes:
            home.missing = 0
        for arrivals in self._arrivals:
            arrivals.expect(microbatches * arrivals.slot.held.deposit.times)
        self._launched = 0

    def _launch(self) -> None:
        while self._launched < len(self._homes) and not self._homes[self._launched].missing:
            self._reduce(self._homes[self._launched])
            self._launched += 1

    def _reduce(self, home: _Home) -> None:
        if home.chunk.kind.on_host:
            if len(self._away) == _AWAY:
                self._away.popleft().finish()
            self._away.append(home)
        home.reduce()

    def finished(self) -> Iterator[Chunk]:
        """Each chunk as soon as its own gradients are those of the whole batch.

        What no gradient came for goes now, as zero, so that ranks never disagree about what is reduced.
        Chunks that the two ends of the pipeline share come last, as one end has the gradients earlier.
        """
        if self._delivery is not None:
            self._delivery.settle()
        for arrivals in self._arrivals:
            arrivals.close()
        for home in self._homes[self._launched :]:
            self._reduce(home)
        self._launched = len(self._homes)
        self._away.clear()
        for home in sorted(self._homes, key=lambda home: home.chunk.kind.shared):
            home.finish()
            if home.chunk.kind.shared:
                home.meet(self._ends)
            yield home.chunk

    def publish(self, chunk: Chunk) -> None:
        """Begin to bring what this rank made of its share to the ranks it shares the chunk with."""
        if not chunk.sharded:
            chunk.expand()
            return
        if chunk.kind.on_host:
            self.settle()
        whole = _Reach(chunk, chunk.peers, self._device).room(chunk.parameter)
        own = torch.empty_like(chunk.own_parameter, device=self._device).copy_(chunk.own_parameter)
        self._gathers.append((Coming(whole, chunk.peers.all_gather(whole, own)), chunk))

    def settle(self) -> None:
        """Return when all that was published has come."""
        for coming, chunk in self._gathers:
            _bring(coming, chunk.parameter)
            chunk.expand()
        self._gathers.clear()
