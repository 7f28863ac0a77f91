"""A user's own model whose steps take as long as SLOW_SECONDS says; what it learns does not depend on it."""

import os
import time

import torch
from torch import nn
from torch.utils.data import TensorDataset

from hpcdl.engine.program import Program


class Slow(nn.Linear):
    def forward(self, inputs):
        time.sleep(float(os.environ.get("SLOW_SECONDS", "0")))
        return super().forward(inputs)


def program():
    inputs = torch.linspace(-1, 1, 256).reshape(64, 4)
    return Program(
        layers=[lambda: Slow(4, 2)],
        loss=nn.CrossEntropyLoss(reduction="sum"),
        data=TensorDataset(inputs, (inputs.sum(1) > 0).long()),
    )
