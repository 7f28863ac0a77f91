"""Data parallelism: the engine's data and z axes against DDP, FSDP2 and the ZeRO-1 optimizer of torch.

python benchmarks/engine/data.py
"""

from __future__ import annotations

import warnings

import ours
import plain
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from turns import Step, in_processes, report, take_turns

from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model

RANKS, ROWS, ROUNDS = 4, 16, 9
MODEL = Model(family="gpt", layers=4, hidden=256, heads=8, vocab=512, sequence=128, tied=False)


def stepping(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """One step of a replicated or sharded module on this rank's part of the batch."""

    def step(number: int) -> float:
        inputs, targets = (part.chunk(RANKS)[dist.get_rank()] for part in plain.batch(MODEL, ROWS, number))
        loss = plain.loss_of(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean = loss.detach() / RANKS
        dist.all_reduce(mean)  # the engine, too, agrees on the loss of every step
        return mean.item()

    return step


def ddp() -> Step:
    model = DistributedDataParallel(plain.gpt(MODEL), gradient_as_bucket_view=True)
    return stepping(model, plain.optimizer(model.parameters()))


def ddp_zero() -> Step:
    model = DistributedDataParallel(plain.gpt(MODEL), gradient_as_bucket_view=True)
    optimizer = ZeroRedundancyOptimizer(plain.groups(model.parameters()), torch.optim.AdamW, **plain.SETTINGS)
    return stepping(model, optimizer)


def fsdp2() -> Step:
    model = plain.gpt(MODEL)
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    return stepping(model, plain.optimizer(model.parameters()))


def main() -> None:
    transport = in_processes(RANKS)
    warnings.simplefilter("ignore")
    share = ROWS // RANKS
    replicated = {
        "hpcdl data 4": ours.step_of(transport, MODEL, Decomposition(data=4, microbatch=share), ROWS),
        "torch DDP": ddp(),
    }
    report("replicated", take_turns(replicated, ROUNDS), "hpcdl data 4")
    zero = {
        "hpcdl data 4, zero 1": ours.step_of(
            transport, MODEL, Decomposition(data=4, microbatch=share, zero=1), ROWS
        ),
        "torch DDP, ZeroRedundancyOptimizer": ddp_zero(),
    }
    report("optimizer state sharded", take_turns(zero, ROUNDS), "hpcdl data 4, zero 1")
    sharded = {
        "hpcdl z 4": ours.step_of(transport, MODEL, Decomposition(z=4, microbatch=share), ROWS),
        "torch FSDP2": fsdp2(),
    }
    report("weights sharded", take_turns(sharded, ROUNDS), "hpcdl z 4")
    transport.close()


if __name__ == "__main__":
    main()
