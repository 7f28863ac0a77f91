"""A user's own model that does one thing wrong on one rank."""

import ctypes
import os
import signal
import sys

import torch
from torch import nn
from torch.utils.data import TensorDataset

from hpcdl.engine.program import Program


def program(fault, rank):
    own = int(os.environ.get("SLURM_PROCID", os.environ.get("RANK", "0")))
    if rank in (own, "every"):
        FAULTS[fault]()
    inputs = torch.linspace(-1, 1, 64).reshape(16, 4)
    return Program(
        layers=[lambda: nn.Linear(4, 2)],
        loss=nn.CrossEntropyLoss(reduction="sum"),
        data=TensorDataset(inputs, (inputs.sum(1) > 0).long()),
    )


def _import_what_is_missing():
    import hpcdl_never_had_this  # noqa: F401, PLC0415


FAULTS = {
    "nothing": lambda: None,
    "exit 7": lambda: sys.exit(7),
    "import": _import_what_is_missing,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crash": lambda: ctypes.string_at(0),
}
