"""Pipelines: the engine's message-driven one against the schedules of torch.distributed.pipelining.

    python benchmarks/engine/pipeline.py

The stages compute for real, four ranks on whatever cores there are. See ``scheduling.py`` for devices that do
not share cores.
"""

from __future__ import annotations

import warnings

import ours
import plain
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from turns import Step, in_processes, report, take_turns

from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model

RANKS, MICROBATCHES, MICROBATCH, ROUNDS = 4, 8, 2, 7
ROWS = MICROBATCHES * MICROBATCH
MODEL = Model(family="gpt", layers=8, hidden=256, heads=8, vocab=512, sequence=128, tied=False)


def stages(count: int) -> list[nn.Sequential]:
    """The model in ``count`` equal runs of layers, embedding and head at the ends."""
    begin, *blocks, end = plain.gpt(MODEL)
    width = len(blocks) // count
    runs = [blocks[i * width : (i + 1) * width] for i in range(count)]
    runs[0], runs[-1] = [begin, *runs[0]], [*runs[-1], end]
    return [nn.Sequential(*run) for run in runs]


def scheduled(kind: str) -> Step:
    """A schedule of torch over this rank's stage or stages, updated by fused AdamW."""
    rank, cpu = dist.get_rank(), torch.device("cpu")
    count = 2 * RANKS if kind == "interleaved" else RANKS
    mine = {index: stage for index, stage in enumerate(stages(count)) if index % RANKS == rank}
    wrapped = [PipelineStage(stage, index, count, cpu) for index, stage in mine.items()]
    if kind == "interleaved":
        schedule = ScheduleInterleaved1F1B(wrapped, MICROBATCHES, plain.loss_of)
    else:
        schedule = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[kind](
            wrapped[0], MICROBATCHES, plain.loss_of
        )
    optimizer = plain.optimizer([p for stage in mine.values() for p in stage.parameters()])

    def step(number: int) -> float:
        inputs, targets = plain.batch(MODEL, ROWS, number)
        losses: list[torch.Tensor] = []
        if rank == RANKS - 1:
            schedule.step(target=targets, losses=losses)
        else:
            schedule.step(*((inputs,) if rank == 0 else ()))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean = torch.stack(losses).mean().detach() if losses else torch.zeros(())
        dist.all_reduce(mean)  # the engine, too, agrees on the loss of every step
        return mean.item()

    return step


def main() -> None:
    transport = in_processes(RANKS)
    warnings.simplefilter("ignore")

    def engine(**changes: object) -> Step:
        decomposition = Decomposition(pipeline=RANKS, microbatch=MICROBATCH, **changes)
        return ours.step_of(transport, MODEL, decomposition, ROWS)

    contestants = {
        "hpcdl": engine(),
        "hpcdl, deferred weights": engine(defer_weights=True),
        "hpcdl, interleave 2": engine(interleave=2),
        "hpcdl, interleave 2, deferred": engine(interleave=2, defer_weights=True),
        "torch GPipe": scheduled("gpipe"),
        "torch 1F1B": scheduled("1f1b"),
        "torch interleaved 1F1B": scheduled("interleaved"),
    }
    report("pipeline of 4", take_turns(contestants, ROUNDS), "hpcdl")
    transport.close()


if __name__ == "__main__":
    main()
