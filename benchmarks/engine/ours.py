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


def step_of(
    transport: Transport, model: Model, decomposition: Decomposition, rows: int, **settings: object
) -> Step:
    """The engine's step in fp32, without clipping, as the peers do it; ``settings`` are of the training."""
    optimizer = Optimizer(lr=RATE, weight_decay=0.1, clip=0.0)
    common = dict(global_batch=rows, precision="fp32", optimizer=optimizer, seed=plain.SEED)
    training = Training.model_validate({**common, **settings})
    experiment = Experiment(model=model, data=Data(source="stdlib"), training=training)
    learner = Learner(experiment, decomposition, transport, torch.device("cpu"))
    shard, shards = learner.topology.batch_shard, decomposition.batch_shards

    def step(number: int) -> float:
        inputs, targets = (part.chunk(shards)[shard] for part in plain.batch(model, rows, number))
        return learner.step(number, inputs, targets, RATE).loss

    return step
