"""Ranks as threads, small models, and full tensors put together from shards."""

import random
import threading
from collections.abc import Callable
from typing import Any

import torch

from hpcdl.engine.tensor.parameters import Held
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.base import Done, Transport
from hpcdl.engine.transport.memory import MemoryTransport, World
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model

GPT = Model(family="gpt", layers=3, hidden=16, heads=4, ffn=32, vocab=256, sequence=6)
LLAMA = Model(family="llama", layers=3, hidden=16, heads=8, kv_heads=4, ffn=24, vocab=256, sequence=6)


class Jittery(MemoryTransport):
    """A door whose messages take their time, each its own; collectives are as ever."""

    def __init__(self, world: World, rank: int, seed: int) -> None:
        super().__init__(world, rank)
        self._delays = random.Random(f"{seed}:{rank}")

    def send(self, tensor: torch.Tensor, peer: int, tag: int) -> Any:
        delay = self._delays.choice([0.0, 0.001, 0.004])
        copy = tensor.detach().clone()
        threading.Timer(delay, super().send, (copy, peer, tag)).start()
        return Done()


def in_threads(
    ranks: int, work: Callable[[Transport], Any], door: Callable[[World, int], Transport] = MemoryTransport
) -> list[Any]:
    """The answers of ``work`` on every rank, by rank; the first failure is raised."""
    world = World(ranks, timeout_seconds=120)
    answers: list[Any] = [None] * ranks
    failures: list[Exception] = []

    def run(rank: int) -> None:
        try:
            answers[rank] = work(door(world, rank))
        except Exception as failure:  # noqa: BLE001 - raised below, in the test's thread
            failures.append(failure)
            world.fail()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return answers


def whole(
    decomposition: Decomposition, pieces: list[list[tuple[Held, torch.Tensor]]]
) -> dict[str, torch.Tensor]:
    """Full tensors by name from what each rank holds of them; copies must be equal to the bit."""
    full: dict[str, torch.Tensor] = {}
    for rank, held in enumerate(pieces):
        topology = Topology(decomposition, rank)
        for one, values in held:
            target = full.setdefault(one.name, torch.full(one.sharding.shape, torch.nan))
            block = target[one.sharding.block(topology)].reshape(-1).clone()
            span = one.sharding.span(topology)
            present = ~block[span].isnan()
            assert torch.equal(block[span][present], values.reshape(-1)[present]), one.name
            block[span] = values.detach().reshape(-1)
            target[one.sharding.block(topology)] = block.view(one.sharding.block_shape(topology))
    for name, values in full.items():
        assert not values.isnan().any(), f"nobody holds a part of {name}"
    return full
