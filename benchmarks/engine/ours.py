"""The engine as a contestant: one step of its learner on a batch of random tokens."""

from __future__ import annotations

import plain
import torch
from turns import Step

from hpcdl.engine.learner import Learner
from hpcdl.engine.transport.base import Transport
from hpcdl.spec.data import Data
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.model import Model
from hpcdl.spec.training import Optimizer, Training

RATE = 1e-3


def step_of(transport: Transport, model: Model, decomposition: Decomposition, rows: int) -> Step:
    """The engine's step in fp32, without clipping, as the peers do it."""
    return stepping(learner_of(transport, model, decomposition, rows), model, rows)


def learner_of(
    transport: Transport, model: Model, decomposition: Decomposition, rows: int, **settings: object
) -> Learner:
    """The engine in fp32, without clipping; ``settings`` are further ones of the training."""
    optimizer = Optimizer(lr=RATE, weight_decay=0.1, clip=0.0)
    common = dict(global_batch=rows, precision="fp32", optimizer=optimizer, seed=plain.SEED)
    training = Training.model_validate({**common, **settings})
    experiment = Experiment(model=model, data=Data(source="stdlib"), training=training)
    return Learner(experiment, decomposition, transport, torch.device("cpu"))


def stepping(learner: Learner, model: Model, rows: int) -> Step:
    """Its step on a batch of random tokens."""
    topology = learner.topology
    shard, shards = topology.batch_shard, topology.decomposition.batch_shards

    def step(number: int) -> float:
        inputs, targets = (part.chunk(shards)[shard] for part in plain.batch(model, rows, number))
        return learner.step(Step(number, RATE), inputs, targets).loss

    return step
