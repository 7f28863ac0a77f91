"""A user's own model that trains some steps, and then one of its ranks stands still, or is slow."""

import ctypes
import os
import time

import torch
from torch import nn
from torch.utils.data import Dataset

from hpcdl.engine.checkpoint import shards
from hpcdl.engine.program import Program

BEFORE = 3  # steps that go well
LAUNCHERS = ("RANK", "PMI_RANK", "SLURM_PROCID")


def program(fault, rank, seconds=1000):
    own = int(next(os.environ[name] for name in LAUNCHERS if name in os.environ))
    hangs = rank in (own, "every")
    if hangs and fault == "checkpoint":
        slow_down_checkpoints(seconds)
    forward = FORWARDS.get(fault) if hangs or fault == "slow" else None
    return Program(
        layers=[lambda: Layer(forward, seconds * (2 if hangs and fault == "slow" else 1))],
        loss=nn.CrossEntropyLoss(reduction="sum"),
        data=Samples(seconds if hangs and fault == "data" else 0),
    )


class Layer(nn.Linear):
    def __init__(self, fault, seconds):
        super().__init__(4, 2)
        self.fault, self.seconds, self.calls = fault, seconds, 0

    def forward(self, inputs):
        self.calls += inputs.device.type != "meta"
        if self.fault and self.calls > BEFORE:
            self.fault(self.seconds)
        return super().forward(inputs)


class Samples(Dataset):
    def __init__(self, seconds):
        self.seconds = seconds
        self.read = 0

    def __len__(self):
        return 16

    def __getitem__(self, index):
        self.read += 1
        if self.read > 4 * BEFORE:  # four samples a step and rank
            time.sleep(self.seconds)
        inputs = torch.linspace(-1, 1, 64).reshape(16, 4)[index]
        return inputs, (inputs.sum() > 0).long()


def slow_down_checkpoints(seconds):
    write = shards.write

    def slowly(*arguments):
        time.sleep(seconds)
        write(*arguments)

    shards.write = slowly


def sleep(seconds):
    time.sleep(seconds)


def loop(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def hold(_):
    """A deadlock in C, without letting go of the interpreter; no signal interrupts it."""
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)  # zeros are a mutex of glibc
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


FORWARDS = {"slow": sleep, "sleep": sleep, "loop": loop, "hold": hold}
