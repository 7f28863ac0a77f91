"""Summing gradients over the ranks that read different sequences, while backward still runs.

Gradients live in flat fp32 buffers, a bucket each (see ``buckets``). How many gradients each parameter gets
in a batch is known, so a bucket is complete when the last has come; then, if all buckets before it are on
their way, its all-reduce starts. So every rank starts the same reductions in the same order. The loss is
already divided by the tokens of the whole batch, so a sum is the mean.

A weight that is cut over z arrives here reduced over z (Algorithm 1) and is summed over data; what
every z rank holds whole is summed over data × z. A tied embedding that two stages hold is summed
over the two at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpcdl.engine.buckets import Bucket, Piece, layout
from hpcdl.engine.groups import Groups, Peers
from hpcdl.engine.optim.adamw import Slot
from hpcdl.engine.tensor.parameters import Deposit, Held
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.base import Handle

_BYTES = 4  # of an fp32 gradient


class _Buffer:
    """One bucket with its memory."""

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self.bucket = bucket
        self.values = torch.zeros(bucket.elements, dtype=torch.float32, device=device)
        self.missing = 0

    def view(self, held: Held) -> torch.Tensor:
        start = self.bucket.offsets[held.name]
        return self.values[start : start + held.parameter.numel()].view(held.parameter.shape)


class Gradients:
    """The gradients of one rank.

    Args:
        held: its parameters, in the order of execution.
        topology: where it sits.
        groups: whom it sums with.
        bucket_mib: size of a bucket, MiB.
    """

    def __init__(self, held: Sequence[Held], topology: Topology, groups: Groups, bucket_mib: float) -> None:
        self._peers: dict[str, Peers] = {"data": groups.data, "batch": groups.batch}
        self._ends = groups.ends
        pieces = [Piece(one.name, one.parameter.numel(), _group(one)) for one in held]
        buckets = layout(pieces, int(bucket_mib * 1024**2) // _BYTES)
        self._buffers = [_Buffer(bucket, held[0].parameter.device) for bucket in buckets]
        self._home = {piece.name: home for home in self._buffers for piece in home.bucket.pieces}
        self._handles: list[Handle] = []
        self._launched = 0
        self.slots = [self._slot(one, topology) for one in held]
        self._shared = [slot.gradient for slot, one in zip(self.slots, held, strict=True) if one.shared]
        self._deposits = [one.deposit for one in held]
        for one, slot in zip(held, self.slots, strict=True):
            self._attach(one.deposit, slot)

    def _slot(self, held: Held, topology: Topology) -> Slot:
        copies = self._ends.size if held.shared else 1
        return Slot(
            name=held.name,
            parameter=held.parameter,
            gradient=self._home[held.name].view(held),
            replicas=held.sharding.replicas(topology) * copies,
            decay=held.decay,
            sharding=held.sharding,
            writes=held.sharding.is_first_replica(topology) and (topology.is_first or not held.shared),
        )

    def _attach(self, deposit: Deposit, slot: Slot) -> None:
        """Let every gradient of a parameter come into its bucket, and be counted."""
        home = self._home[slot.name]

        def arrived(gradient: torch.Tensor) -> None:
            slot.gradient.add_(gradient)
            home.missing -= 1
            self._launch()

        def accumulated(computed: torch.Tensor) -> None:
            assert computed.grad is not None  # noqa: S101 - for mypy
            arrived(computed.grad)
            computed.grad = None

        deposit.add = arrived
        if deposit.by_autograd:
            slot.parameter.register_post_accumulate_grad_hook(accumulated)  # type: ignore[no-untyped-call]

    def begin(self, microbatches: int) -> None:
        """Begin a batch of so many microbatches."""
        for buffer in self._buffers:
            buffer.values.zero_()
            buffer.missing = 0
        for deposit, slot in zip(self._deposits, self.slots, strict=True):
            self._home[slot.name].missing += microbatches * deposit.times
        self._launched = 0

    def _launch(self) -> None:
        while self._launched < len(self._buffers) and not self._buffers[self._launched].missing:
            buffer = self._buffers[self._launched]
            self._handles.append(self._peers[buffer.bucket.group].all_reduce(buffer.values))
            self._launched += 1

    def finish(self) -> None:
        """Wait until all gradients are those of the whole batch."""
        for handle in self._handles:
            handle.wait()
        self._handles.clear()
        for gradient in self._shared:
            self._ends.all_reduce(gradient).wait()


def _group(held: Held) -> str:
    return "data" if held.sharding.flat else "batch"
