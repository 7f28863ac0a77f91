"""Summing gradients over the ranks that read different sequences, while backward still runs.

How many gradients each parameter gets in a batch is known, so a chunk (see ``optim.flat``) is complete when
the last of its parameters has them all; then, if all chunks before it are on their way, its reduction starts.
So every rank starts the same reductions in the same order. The loss is already divided by the tokens of the
whole batch, so a sum is the mean.

A weight that is cut over z arrives here reduced over z (Algorithm 1) and is summed over data; what every z
rank holds whole is summed over data × z. A tied embedding that two stages hold is then summed over the two.
With ZeRO-1 the sum is scattered: a rank gets the share that it updates, and what it made of it is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.hooks import RemovableHandle

from hpcdl.engine.groups import Peers
from hpcdl.engine.optim.flat import Chunk, Flat, Slot
from hpcdl.engine.transport.base import Handle


class _Home:
    """One chunk, and how many gradients it still waits for."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.missing = 0
        self.handle: Handle | None = None

    def reduce(self) -> None:
        chunk = self.chunk
        self.handle = (
            chunk.peers.reduce_scatter(chunk.own_gradient, chunk.gradient)
            if chunk.sharded
            else chunk.peers.all_reduce(chunk.gradient)
        )


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
        self._homes = [_Home(chunk) for chunk in flat.chunks]
        self._arrivals = [
            _Arrivals(slot, [home for home in self._homes if slot.name in home.chunk.names])
            for slot in flat.slots
        ]
        self._launched = 0
        self._gathers: list[tuple[Handle, Chunk]] = []
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
            self._homes[self._launched].reduce()
            self._launched += 1

    def finished(self) -> Iterator[Chunk]:
        """Each chunk as soon as its own gradients are those of the whole batch.

        What no gradient came for goes now, as zero, so that ranks never disagree about what is reduced.
        Chunks that the two ends of the pipeline share come last, as one end has the gradients earlier.
        """
        for arrivals in self._arrivals:
            arrivals.close()
        for home in self._homes[self._launched :]:
            home.reduce()
        self._launched = len(self._homes)
        for home in sorted(self._homes, key=lambda home: home.chunk.kind.shared):
            assert home.handle is not None  # noqa: S101 - for mypy
            home.handle.wait()
            if home.chunk.kind.shared:
                self._ends.all_reduce(home.chunk.own_gradient).wait()
            yield home.chunk

    def publish(self, chunk: Chunk) -> None:
        """Begin to bring what this rank made of its share to the ranks it shares the chunk with."""
        if chunk.sharded:
            handle = chunk.peers.all_gather(chunk.parameter, chunk.own_parameter.clone())
            self._gathers.append((handle, chunk))
        else:
            chunk.expand()

    def settle(self) -> None:
        """Return when all that was published has come."""
        for handle, chunk in self._gathers:
            handle.wait()
            chunk.expand()
        self._gathers.clear()
