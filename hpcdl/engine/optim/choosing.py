"""Where weights whose state lies on the host are updated: where it is faster, by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hpcdl.engine.groups import Peers
from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.log import say
from hpcdl.engine.optim.adamw import AdamW
from hpcdl.engine.optim.bucket import Bucket
from hpcdl.engine.optim.flat import Flat
from hpcdl.engine.optim.offload import Device, Host, Room
from hpcdl.engine.optim.stepping import Apart, Stepping
from hpcdl.engine.transport.base import Reduction
from hpcdl.spec.training import Training
from hpcdl.units import MIB

_ROUNDS = 4  # the first is not counted: it meets cold memory


@dataclass(frozen=True)
class Choice:
    """Who updates the weights, and why.

    Attributes:
        stepping: that one.
        way: ``device`` or ``host``; ``None`` where state lies beside the weights.
        seconds: of two buckets either way on the slowest rank; empty where there was no choice.
    """

    stepping: Stepping
    way: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, object]:
        """For the run's events; empty where state lies beside the weights."""
        if self.way is None:
            return {}
        return {"step": self.way} | {f"{way}_seconds": value for way, value in self.seconds.items()}


def choose(training: Training, flat: Flat, world: Peers) -> Choice:
    """Who updates the weights of ``flat``; all ranks of ``world`` choose at the same time, and alike."""
    adamw, host = AdamW(training.optimizer), flat.thrift.host
    if host is None:
        return Choice(adamw)
    room = Room.of([bucket for bucket in flat.buckets if not host.holds(bucket.parameter)])
    ways: dict[str, Callable[[], Stepping]] = {
        "device": lambda: Device(adamw, host.device, room),
        "host": lambda: Host(adamw, host, room),
    }
    way, seconds = training.offload_step, {}
    if way == "auto":
        seconds = _measured(ways, _scratch(host, room), host, world)
        way = "device" if seconds["device"] <= seconds["host"] else "host"
    if way == "device":
        _warn_of_large_buckets(training.bucket_mib, flat)
    stepping = ways[way]()
    return Choice(Apart(host, adamw, stepping) if flat.thrift.matrices else stepping, way, seconds)


def _measured(
    ways: Mapping[str, Callable[[], Stepping]], scratch: Sequence[Bucket], host: HostMemory, world: Peers
) -> dict[str, float]:
    """How long each way takes on the rank that is slowest at it."""
    mine = [_seconds(make(), scratch, host) for make in ways.values()]
    slowest = torch.tensor(mine, device=host.device)
    world.all_reduce(slowest, Reduction.MAX).wait()
    return dict(zip(ways, slowest.tolist(), strict=True))


def _seconds(stepping: Stepping, buckets: Sequence[Bucket], host: HostMemory) -> float:
    """How long it takes to update ``buckets``."""
    taken = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for bucket in buckets:
            stepping.update(bucket, 0.0)
        stepping.join()
        host.settle()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def _scratch(host: HostMemory, room: Room) -> list[Bucket]:
    """Two buckets of nobody's."""

    def bucket() -> Bucket:
        parameter = torch.zeros(room.width, dtype=room.dtype, device=host.device)
        master, exp_avg, exp_avg_sq = (host.zeros(room.width) for _ in range(3))
        gradient, updates = torch.zeros_like(parameter), host.zeros()
        return Bucket(parameter, gradient, master, exp_avg, exp_avg_sq, updates, decay=False, runs=())

    return [bucket(), bucket()]


def _warn_of_large_buckets(bucket_mib: float, flat: Flat) -> None:
    elements = sum(len(chunk.parameter) for chunk in flat.chunks)
    bucket = int(bucket_mib * MIB) // 4
    if bucket > elements:
        say(
            f"warning: training.bucket_mib {bucket_mib:g} is a bucket of {bucket} elements, more than the "
            f"{elements} of this rank: while weights are updated the whole optimizer state is on the device, "
            f"so offload saves nothing there. Set bucket_mib below {elements * 4 / MIB / 8:.2g}, or "
            "offload_step: host"
        )
