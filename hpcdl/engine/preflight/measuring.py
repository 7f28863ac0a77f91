"""How fast a rank multiplies matrices and how fast ranks add over a group: the best of several tries."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hpcdl.engine.transport.base import Group
from hpcdl.engine.transport.observed import Observed


@dataclass(frozen=True)
class Sizes:
    """How much is done, so that it takes long against what disturbs it, and still not long."""

    side: int  # of square matrices
    products: int  # timed together
    bytes: int  # added over ranks
    floor: float  # seconds by which a time must differ from others to mean anything

    @property
    def flops(self) -> float:
        """Of the products that are timed together."""
        return 2.0 * self.side**3 * self.products


SIZES = {
    "cuda": Sizes(side=4096, products=20, bytes=256 << 20, floor=1e-3),
    "cpu": Sizes(side=256, products=4, bytes=256 << 10, floor=50e-3),
}
"""By type of device."""

_TRIES, _MOST_TRIES, _ENOUGH_S = 5, 20, 0.1


def product_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """The time of some products of square matrices on ``device``."""
    sizes = SIZES[device.type]
    # A generator of its own: a run draws the same numbers whether it was looked at or not.
    generator = torch.Generator(device).manual_seed(0)
    left = torch.rand(sizes.side, sizes.side, generator=generator, device=device).to(dtype)
    right, out = left.T.contiguous(), torch.empty_like(left)

    def work() -> None:
        for _ in range(sizes.products):
            torch.mm(left, right, out=out)

    began, best, tries = time.perf_counter(), float("inf"), 0
    while tries < _TRIES or (tries < _MOST_TRIES and time.perf_counter() - began < _ENOUGH_S):
        best, tries = min(best, _timed(work, device)), tries + 1
    return best


def all_reduce_seconds(transport: Observed, group: Group, device: torch.device) -> float:
    """The time of one all-reduce over ``group``; called by all its ranks."""
    values = torch.zeros(SIZES[device.type].bytes // 4, dtype=torch.float32, device=device)

    def work() -> None:
        transport.all_reduce(values, group).wait()

    with transport.timeline.waiting("device"):  # a rank settles when the others have done their part
        work()  # connections are made at first use
        return min(_timed(work, device) for _ in range(_TRIES))


def forget(device: torch.device) -> None:
    """Leave no trace in what is later told of memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _timed(work: Callable[[], None], device: torch.device) -> float:
    _settle(device)
    began = time.perf_counter()
    work()
    _settle(device)
    return time.perf_counter() - began


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
