"""Trains in this process, on one rank, and counts what lies on the device meanwhile."""

from __future__ import annotations

import torch
from counting import Peak

from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.learner import Learner
from hpcdl.engine.transport.memory import World
from hpcdl.engine.update import Step
from hpcdl.spec.data import Data
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training

CPU = torch.device("cpu")
STEPS = 2


def peak_bytes(model: Model, decomposition: Decomposition, training: Training) -> int:
    """The most bytes of tensors that lay on the device at once in two steps, updates included."""
    experiment = Experiment(model=model, data=Data(source="stdlib"), training=training)
    with Peak() as peak:
        learner = Learner(experiment, decomposition, World(1).transport(0), CPU)
        learner.parts()  # moves to the host what is to lie there
        peak.begin(learner._thrift.host or HostMemory(CPU))  # noqa: SLF001 - nobody else asks for it
        shape = (training.global_batch, model.sequence + 1)
        for step in range(1, STEPS + 1):
            tokens = torch.randint(0, model.vocab, shape)
            learner.step(Step(step, training.optimizer.lr), tokens[:, :-1], tokens[:, 1:])
    return peak.most
