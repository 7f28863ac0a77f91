"""Updating weights whose master and moments lie in the memory of the host.

Two ways, which differ in what travels. ``Device`` brings the state of a bucket over, steps there and takes it
back: 24 bytes an element (AxoNN's, Singh and Bhatele, IPDPS 2022, section V-B). ``Host`` brings the gradient
to the host, steps there and takes the weights back: 4 bytes an element in bf16 and fp16, but memory and cores
of the host do the step. The numbers are the same: both call the same kernel over the same elements, and a
bucket is a multiple of 64 elements, so that no kernel treats its end in another way.

There are two slots, so that one bucket travels while another is stepped. A slot is a lane of its own: what
belongs to one bucket is in order there, and the same bucket takes the same slot in every step, so that no
state is fetched before it was written back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.lane import Lane
from hpcdl.engine.optim.adamw import AdamW
from hpcdl.engine.optim.bucket import Bucket
from hpcdl.engine.optim.flat import SLOTS


@dataclass(frozen=True)
class Room:
    """What the slots must have room for.

    Attributes:
        width: elements of the largest bucket.
        slots: as many as there are buckets to travel, at most two.
        dtype: in which the model computes.
    """

    width: int
    slots: int
    dtype: torch.dtype

    @classmethod
    def of(cls, buckets: list[Bucket]) -> Room:
        """For all ``buckets`` of a rank that travel."""
        width = max(len(bucket.parameter) for bucket in buckets)
        return cls(width, min(SLOTS, len(buckets)), buckets[0].parameter.dtype)


def _state(bucket: Bucket) -> tuple[torch.Tensor, ...]:
    """What an update keeps for the next."""
    return bucket.master, bucket.exp_avg, bucket.exp_avg_sq, bucket.updates


class _Staging:
    """One slot on the device: 16 bytes an element."""

    def __init__(self, device: torch.device, width: int) -> None:
        self.lane = Lane(device)
        self._room = torch.zeros(4, width, device=device)
        self._updates = torch.zeros((), device=device)

    @torch.no_grad()
    def update(self, adamw: AdamW, bucket: Bucket, learning_rate: float, divisor: float | None) -> None:
        gradient, master, exp_avg, exp_avg_sq = self._room[:, : len(bucket.parameter)]
        staged = replace(
            bucket,
            gradient=gradient,
            master=master,
            exp_avg=exp_avg,
            exp_avg_sq=exp_avg_sq,
            updates=self._updates,
        )
        with self.lane.running():
            for here, there in zip(_state(staged), _state(bucket), strict=True):
                here.copy_(there, non_blocking=True)
        self.lane.follow()
        with self.lane.running():
            staged.gradient.copy_(bucket.gradient)
            adamw.update(staged, learning_rate, divisor)
            for here, there in zip(_state(staged), _state(bucket), strict=True):
                there.copy_(here, non_blocking=True)


class Device:
    """Steps on the device.

    Args:
        adamw: the step.
        device: where the parameters are.
        room: for the buckets.
    """

    def __init__(self, adamw: AdamW, device: torch.device, room: Room) -> None:
        self._adamw = adamw
        self._slots = [_Staging(device, room.width) for _ in range(room.slots)]
        self._turn = 0

    def update(self, bucket: Bucket, learning_rate: float, divisor: float | None = None) -> None:
        """Begin to update one bucket."""
        slot = self._slots[self._turn % len(self._slots)]
        self._turn += 1
        slot.update(self._adamw, bucket, learning_rate, divisor)

    def join(self) -> None:
        """Let who computes next find the new weights."""
        self._turn = 0
        for slot in self._slots:
            slot.lane.join()


class _Desk:
    """One slot on the host: room for a gradient on its way in, and for weights on their way out."""

    def __init__(self, host: HostMemory, room: Room) -> None:
        self.lane = Lane(host.device)
        self._wire = host.empty((room.width,), room.dtype)

    @torch.no_grad()
    def fetch(self, bucket: Bucket) -> None:
        """Begin to bring the gradient over."""
        self.lane.follow()
        with self.lane.running():
            self._wire[: len(bucket.gradient)].copy_(bucket.gradient, non_blocking=True)

    @torch.no_grad()
    def update(self, adamw: AdamW, bucket: Bucket, learning_rate: float, divisor: float | None) -> None:
        """Step, and begin to take the weights back."""
        wire = self._wire[: len(bucket.gradient)]
        self.lane.wait()
        adamw.update(replace(bucket, gradient=wire, parameter=wire), learning_rate, divisor)
        with self.lane.running():
            bucket.parameter.copy_(wire, non_blocking=True)


class Host:
    """Steps on the host, where torch's fused AdamW uses all threads this rank has.

    Args:
        adamw: the step.
        host: where master and moments are.
        room: for the buckets.
    """

    def __init__(self, adamw: AdamW, host: HostMemory, room: Room) -> None:
        self._adamw = adamw
        self._desks = [_Desk(host, room) for _ in range(room.slots)]
        self._turn = 0
        self._fetched: Callable[[], None] | None = None

    def update(self, bucket: Bucket, learning_rate: float, divisor: float | None = None) -> None:
        """Begin to bring the gradient of one bucket over; step the bucket before it."""
        desk = self._desks[self._turn % len(self._desks)]
        self._turn += 1
        desk.fetch(bucket)
        self._step()
        self._fetched = partial(desk.update, self._adamw, bucket, learning_rate, divisor)

    def join(self) -> None:
        """Step the last bucket, and let who computes next find the new weights."""
        self._step()
        self._turn = 0
        for desk in self._desks:
            desk.lane.join()

    def _step(self) -> None:
        if self._fetched is not None:
            step, self._fetched = self._fetched, None
            step()
