"""An engine of your own: a small network learns parity under DistributedDataParallel, as under torchrun.

It is a plain torchrun script. From hpcdl it takes the run folder, where it keeps a checkpoint of its own, so
that a resumed run goes on.
"""

from __future__ import annotations

import argparse
import gc
import os
from pathlib import Path

import torch
from torch import nn
from torch.distributed import barrier, destroy_process_group, get_rank, init_process_group
from torch.nn.parallel import DistributedDataParallel

BITS = 6


def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Words of a few bits, and whether the number of ones in each is odd."""
    words = torch.randint(0, 2, (64, BITS), generator=generator)
    return words.float() * 2 - 1, words.sum(dim=1) % 2


def main() -> None:
    """Train until the last step, from the checkpoint of an earlier attempt if there is one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    train(steps)
    gc.collect()  # what holds the group longer than Python lives may abort the process on its way out
    barrier()
    destroy_process_group()


def train(steps: int) -> None:
    """Do the steps that are still to do."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(BITS, 64), nn.Tanh(), nn.Linear(64, 2)).to(device)
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-2)
    file = Path(os.environ.get("HPCDL_RUN_FOLDER", ".")) / "checkpoints" / "own.pt"
    first = restore(file, layers, optimizer)
    model = DistributedDataParallel(layers)
    for step in range(first, steps + 1):
        words, odd = batch(torch.Generator().manual_seed(1000 * step + get_rank()))
        loss = nn.functional.cross_entropy(model(words.to(device)), odd.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step in {first, steps}:
            print(f"step {step}  loss {loss.item():.4f}")
            save(file, step, layers, optimizer)


def restore(file: Path, layers: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The first step that is still to do."""
    if not file.exists():
        return 1
    state = torch.load(file, weights_only=True)
    layers.load_state_dict(state["layers"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]) + 1


def save(file: Path, step: int, layers: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Rank 0 keeps what it takes to go on; half a file is never seen."""
    if get_rank() == 0:
        file.parent.mkdir(exist_ok=True)
        state = {"step": step, "layers": layers.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)


if __name__ == "__main__":
    main()
