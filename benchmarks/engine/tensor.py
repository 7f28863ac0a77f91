"""Tensor parallelism: the engine's x axis against DTensor's column- and row-wise plans of torch.

python benchmarks/engine/tensor.py
"""

from __future__ import annotations

import ours
import plain
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from turns import Step, in_processes, report, take_turns

from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model

RANKS, ROWS, ROUNDS = 4, 8, 9
MODEL = Model(family="gpt", layers=4, hidden=256, heads=8, vocab=512, sequence=128, tied=False)


def dtensor() -> Step:
    """Every block's four products split; embedding and head replicated, as torch's tutorial leaves them."""
    mesh = init_device_mesh("cpu", (RANKS,))
    model = plain.gpt(MODEL)
    for index, block in enumerate(model[1:-1]):
        model[1 + index] = plain.Block(index, MODEL, heads=MODEL.heads // RANKS)
        plan = {
            "qkv": ColwiseParallel(),
            "out": RowwiseParallel(),
            "up": ColwiseParallel(),
            "down": RowwiseParallel(),
        }
        parallelize_module(model[1 + index], mesh, plan)
        del block
    return plain.step_of(model, MODEL, ROWS)


def main() -> None:
    transport = in_processes(RANKS)
    contestants = {
        "hpcdl x 4": ours.step_of(transport, MODEL, Decomposition(x=4, microbatch=ROWS), ROWS),
        "torch DTensor, 4 ranks": dtensor(),
        "hpcdl x 2 · y 2": ours.step_of(transport, MODEL, Decomposition(x=2, y=2, microbatch=ROWS), ROWS),
    }
    report("tensor parallel", take_turns(contestants, ROUNDS), "hpcdl x 4")
    dist.barrier()
    transport.close()


if __name__ == "__main__":
    main()
