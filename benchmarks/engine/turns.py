"""Ranks as processes, and contestants that take turns in them.

Every contestant does a training step; in each round every contestant does a few, in rotating order, so
that whatever else the machine does hits all alike. A round's figure is the slowest rank's mean step; reported
is the median over rounds.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from hpcdl.engine.transport.dist import DistTransport

Step = Callable[[int], float]  # the number of a step → its loss


@dataclass(frozen=True)
class Result:
    """What a contestant took."""

    name: str
    seconds: float  # median
    fastest: float
    slowest: float
    loss: float


def in_processes(ranks: int) -> DistTransport:
    """Start this program once a rank and leave with the worst exit code.

    The ranks themselves come back from here, with the engine's door over Gloo; the peers use the process
    group that it opened.
    """
    if "RANK" in os.environ:
        torch.set_num_threads(1)
        rank = int(os.environ["RANK"])
        store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), ranks, is_master=rank == 0)
        return DistTransport(store, (rank, ranks), torch.device("cpu"), timeout_seconds=600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["OMP_NUM_THREADS"] = "1"
    children = [
        subprocess.Popen([sys.executable, *sys.argv], env=os.environ | shared | {"RANK": str(rank)})
        for rank in range(ranks)
    ]
    sys.exit(max(child.wait() for child in children))


def take_turns(contestants: dict[str, Step], rounds: int, steps: int = 3) -> list[Result]:
    """Time every contestant, best first; all ranks call it together and all get the answer."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    losses: dict[str, float] = {}
    count = dict.fromkeys(contestants, 0)
    names = list(contestants)
    for turn in range(rounds + 1):  # the first warms up
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            dist.barrier()
            start = time.perf_counter()
            for _ in range(steps):
                count[name] += 1
                losses[name] = contestants[name](count[name])
            took = torch.tensor((time.perf_counter() - start) / steps)
            dist.all_reduce(took, dist.ReduceOp.MAX)
            seconds[name] += [took.item()] if turn else []
    return [
        Result(name, statistics.median(times), min(times), max(times), losses[name])
        for name, times in seconds.items()
    ]


def report(title: str, results: list[Result], ours: str) -> None:
    """A table on rank 0, and a line of JSON for who keeps results."""
    if dist.get_rank():
        return
    mine = next(result for result in results if result.name == ours)
    print(f"\n{title}")
    for result in results:
        ratio = result.seconds / mine.seconds
        print(
            f"  {result.name:32} {result.seconds * 1e3:8.1f} ms "
            f"({result.fastest * 1e3:.1f} to {result.slowest * 1e3:.1f})  {ratio:5.2f}x ours  "
            f"loss {result.loss:.5f}"
        )
    print(json.dumps({"title": title, "results": [vars(result) for result in results]}), flush=True)
