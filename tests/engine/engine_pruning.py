"""Pruned learners in any decomposition, and what they are held against: dense training under a mask."""

import torch
from engine_worlds import in_threads, whole

from hpcdl.engine.groups import make_groups
from hpcdl.engine.learner import Learner
from hpcdl.engine.models.build import build_stage
from hpcdl.engine.pruning import Pruner
from hpcdl.engine.tensor.parameters import Numerics
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.memory import MemoryTransport, World
from hpcdl.engine.update import Step
from hpcdl.spec.data import Data
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.training import Optimizer, Training

CPU = torch.device("cpu")
BATCH, STEPS = 8, 4
SGD_LIKE = Optimizer(lr=0.01, eps=0.1, clip=0.5)
"""A large epsilon: with Adam's own, an element whose gradient is rounding noise moves by ± lr."""


def experiment(model, precision="fp32", pruning=None, **training):
    usual = {"optimizer": SGD_LIKE, "bucket_mib": 0.002, "global_batch": BATCH}
    return Experiment(
        model=model,
        data=Data(source="stdlib"),
        training=Training(steps=STEPS, precision=precision, pruning=pruning, **usual | training),
    )


def batch(settings, step):
    generator, model = torch.Generator().manual_seed(step), settings.model
    return torch.randint(0, model.vocab, (BATCH, model.sequence + 1), generator=generator)


def learn(learner, settings, step):
    topology = learner.topology
    rows = batch(settings, step).chunk(topology.decomposition.batch_shards)[topology.batch_shard]
    return learner.step(Step(step, settings.training.optimizer.lr), rows[:, :-1], rows[:, 1:])


class Trained:
    """What all ranks together found: outcomes, reports of prunings, full weights and masks at the end."""

    def __init__(self, settings, decomposition, steps=STEPS):
        answers = in_threads(
            decomposition.ranks, lambda door: self.work(door, settings, decomposition, steps)
        )
        self.outcomes, self.reports = answers[0][0], answers[0][1]
        assert all(answer[0] == self.outcomes for answer in answers), "ranks disagree about a step"
        assert all(answer[1] == self.reports for answer in answers), "ranks disagree about a pruning"
        self.weights = whole(decomposition, [answer[2] for answer in answers])
        self.masks = whole(decomposition, [answer[3] for answer in answers])

    @staticmethod
    def work(transport, settings, decomposition, steps):
        learner = Learner(settings, decomposition, transport, CPU)
        reports, outcomes = [], []
        pruner = Pruner(settings.training.pruning, learner, lambda kind, **detail: reports.append(detail))
        pruner.begin(0)
        for step in range(1, steps + 1):
            outcomes.append(learn(learner, settings, step))
            assert_zero_where_pruned(learner)
            pruner.act(step)
            assert_zero_where_pruned(learner)
        held = learner.stage.held
        masks = [(one, learner.kept[one.name].mask.float()) for one in held if one.name in learner.kept]
        return outcomes, reports, [(one, one.parameter.detach().float()) for one in held], masks


def assert_zero_where_pruned(learner):
    for held in learner.stage.held:
        if held.name in learner.kept:
            assert not held.parameter.detach().view(-1)[~learner.kept[held.name].mask].any(), held.name


def dense_masked(settings, draw, steps=STEPS):
    """Serial training by torch alone; gradients and weights are multiplied with masks in every step.

    Args:
        draw: of a step and the full weights by name, the masks by which to prune after it, or None.

    Returns:
        Losses, gradient norms, weights, masks.
    """
    transport = MemoryTransport(World(1), 0)
    topology = Topology(Decomposition(microbatch=BATCH), 0)
    groups = make_groups(transport, topology, tied=settings.model.tied)
    stage = build_stage(
        settings.model, topology, groups, Numerics(torch.float32, CPU, settings.training.seed)
    )
    told = settings.training.optimizer
    shaped = {held.name: held.parameter.detach().view(held.sharding.shape) for held in stage.held}
    optimizer = torch.optim.AdamW(
        [
            {"params": [held.parameter for held in stage.held if held.decay]},
            {"params": [held.parameter for held in stage.held if not held.decay], "weight_decay": 0.0},
        ],
        lr=told.lr, betas=told.betas, eps=told.eps, weight_decay=told.weight_decay,
    )  # fmt: skip
    masks, losses, norms = {}, [], []

    def prune(step):
        drawn = draw(step, shaped)
        masks.update(drawn or {})
        for name, mask in masks.items():
            shaped[name].mul_(mask)

    prune(0)
    for step in range(1, steps + 1):
        tokens = batch(settings, step)
        loss = stage.chunks[0](tokens[:, :-1], tokens[:, 1:]) / tokens[:, 1:].numel()
        loss.backward()
        stage.later.settle()
        for held in stage.held:
            if held.name in masks:
                held.parameter.grad.mul_(masks[held.name].view(held.parameter.shape))
        norm = torch.nn.utils.clip_grad_norm_([held.parameter for held in stage.held], told.clip or torch.inf)
        optimizer.step()
        optimizer.zero_grad()
        for name, mask in masks.items():
            shaped[name].mul_(mask)
        losses.append(loss.item())
        norms.append(norm.item())
        prune(step)
    return losses, norms, {name: values.clone() for name, values in shaped.items()}, masks


def smallest_gone(weights, sparsity):
    """A mask of all but the smallest, by sorting."""
    go = round(sparsity * weights.numel())
    return weights.abs() > weights.abs().flatten().kthvalue(go).values


def learner_of(settings):
    """Alone, and its pruner."""
    reports = []
    learner = Learner(settings, Decomposition(microbatch=2), MemoryTransport(World(1), 0), CPU)
    return learner, Pruner(settings.training.pruning, learner, lambda *_, **detail: reports.append(detail))
