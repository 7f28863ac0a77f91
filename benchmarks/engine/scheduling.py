"""Pipeline scheduling alone: stages that take time without taking a core, messages that are late.

    python benchmarks/engine/scheduling.py

Four ranks on two cores show little of a schedule, because waiting ranks lend their core. Here a layer sleeps,
as a host does while its GPU computes, so four ranks are four devices; what is compared is who waits for what.
Messages are real, over Gloo; both sides send through the same door, which delays them alike.
"""

from __future__ import annotations

import random
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d as c10d
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from turns import Step, in_processes, report, take_turns

from hpcdl.engine.groups import make_groups
from hpcdl.engine.pipeline.runner import Batch, Pass, Seat
from hpcdl.engine.tensor.later import Later
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.base import Transport
from hpcdl.engine.transport.packet import Field
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.job import Overlap

RANKS, MICROBATCHES, ROUNDS = 4, 16, 9
FORWARD = INPUT = WEIGHT = 5e-3  # seconds of one microbatch on one rank
WIDTH = 64


class Conditions:
    """What goes wrong: one slow rank, hiccups of a rank, late messages."""

    slow = 1.0  # rank 2 takes so many times as long
    hiccup = 0.0  # seconds that one in ten pieces of work on rank 2 takes more
    late = 0.0  # seconds that one message in four takes more

    def begin(self, number: int) -> None:
        """The same luck for every contestant in its step ``number``."""
        self._random = random.Random(f"{dist.get_rank()} {number}")

    def work(self, seconds: float) -> None:
        if dist.get_rank() == 2:
            seconds = seconds * self.slow + (self._random.random() < 0.1) * self.hiccup
        time.sleep(seconds)

    def delay(self) -> float:
        return (self._random.random() < 0.25) * self.late


class DelayedSends:
    """Takes the place of ``dist.isend``: messages to one rank keep their order, some come late."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._send = dist.isend
        self._channels: dict[Any, ThreadPoolExecutor] = {}

    def __call__(self, tensor: torch.Tensor, dst: int | None = None, *rest: Any, **named: Any) -> Any:
        delay = self._conditions.delay()
        key = dst if dst is not None else named.get("group_dst")
        channel = self._channels.setdefault(key, ThreadPoolExecutor(max_workers=1))
        due, copy = time.monotonic() + delay, tensor.detach().clone()

        def send() -> None:
            time.sleep(max(0.0, due - time.monotonic()))
            self._send(copy, dst, *rest, **named).wait()

        return _Underway(channel.submit(send))


class _Underway:
    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def wait(self, *_: Any) -> bool:
        self._future.result()
        return True


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, layer: Layer) -> torch.Tensor:
        ctx.layer = layer
        layer.conditions.work(FORWARD / layer.chunks)
        return value * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        layer: Layer = ctx.layer
        layer.conditions.work(INPUT / layer.chunks)
        layer.weight_gradient()
        return gradient * 1.0, None


class Layer(nn.Module):
    """All layers of one virtual stage; a stage that is cut finer takes as much less."""

    def __init__(self, conditions: Conditions, chunks: int, later: Later | None = None) -> None:
        super().__init__()
        self.conditions = conditions
        self.chunks = chunks
        self._later = later
        self.last = False

    def weight_gradient(self) -> None:
        if self._later is None:
            self.conditions.work(WEIGHT / self.chunks)
        else:
            self._later.do(lambda: self.conditions.work(WEIGHT / self.chunks))

    def forward(self, value: torch.Tensor, *_: Any) -> torch.Tensor:
        output = _Sleep.apply(value.requires_grad_(), self)
        return output.square().sum() if self.last else output


class Emulated:
    """What the engine's runner needs of a stage."""

    def __init__(self, conditions: Conditions, topology: Topology, transport: Transport) -> None:
        d = topology.decomposition
        self.later = Later(make_groups(transport, topology, tied=False), Overlap())
        self.chunks = nn.ModuleList(Layer(conditions, d.interleave, self.later) for _ in range(d.interleave))
        if topology.is_last:
            self.chunks[-1].last = True
        self.signatures = ((Field((WIDTH,), torch.float32),),) * (d.pipeline * d.interleave)
        self.device = torch.device("cpu")


def engine(transport: Transport, conditions: Conditions, **changes: Any) -> Step:
    """One batch through the engine's runner."""
    decomposition = Decomposition(pipeline=RANKS, **changes)
    topology = Topology(decomposition, transport.rank)
    model = Emulated(conditions, topology, transport)
    seat = Seat(transport, topology, make_groups(transport, topology, tied=False).team)
    rows = tuple(torch.ones(1, WIDTH) for _ in range(MICROBATCHES))

    def step(number: int) -> float:
        conditions.begin(number)
        loss = Pass(seat, model, Batch(rows, rows, 1.0, step=number)).run()
        dist.barrier()
        return loss.item()

    return step


def scheduled(conditions: Conditions, kind: str) -> Step:
    """One batch through a schedule of torch."""
    rank, cpu, chunks = dist.get_rank(), torch.device("cpu"), 2 if kind == "interleaved" else 1
    mine = [
        PipelineStage(Layer(conditions, chunks), chunk * RANKS + rank, chunks * RANKS, cpu)
        for chunk in range(chunks)
    ]

    def loss_of(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return output.square().sum()

    if kind == "interleaved":
        schedule = ScheduleInterleaved1F1B(mine, MICROBATCHES, loss_of)
    else:
        schedule = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[kind](mine[0], MICROBATCHES, loss_of)
    rows = torch.ones(MICROBATCHES, WIDTH)

    def step(number: int) -> float:
        conditions.begin(number)
        losses: list[torch.Tensor] = []
        if rank == RANKS - 1:
            schedule.step(target=rows, losses=losses)
        else:
            schedule.step(*((rows.clone(),) if rank == 0 else ()))
        dist.barrier()
        return sum(loss.item() for loss in losses)

    return step


SITUATIONS = {
    "nothing goes wrong": {},
    "rank 2 takes 1.5 times as long": {"slow": 1.5},
    "one in ten pieces of work on rank 2 takes 20 ms more": {"hiccup": 20e-3},
    "one message in four is 10 ms late": {"late": 10e-3},
}


def main() -> None:
    transport = in_processes(RANKS)
    warnings.simplefilter("ignore")
    conditions = Conditions()
    dist.isend = c10d.isend = DelayedSends(conditions)
    contestants = {
        "hpcdl": engine(transport, conditions),
        "hpcdl, 4 in flight": engine(transport, conditions, in_flight=4),
        "hpcdl, 8 in flight": engine(transport, conditions, in_flight=8),
        "hpcdl, deferred": engine(transport, conditions, defer_weights=True),
        "hpcdl, interleave 2": engine(transport, conditions, interleave=2),
        "hpcdl, interleave 2, deferred": engine(transport, conditions, interleave=2, defer_weights=True),
        "torch GPipe": scheduled(conditions, "gpipe"),
        "torch 1F1B": scheduled(conditions, "1f1b"),
        "torch interleaved 1F1B": scheduled(conditions, "interleaved"),
    }
    for title, changes in SITUATIONS.items():
        vars(conditions).update({"slow": 1.0, "hiccup": 0.0, "late": 0.0} | changes)
        report(title, take_turns(contestants, ROUNDS), "hpcdl")
    transport.close()


if __name__ == "__main__":
    main()
