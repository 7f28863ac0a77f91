"""Training in one decomposition held against the serial run: outcomes, full gradients, full weights."""

import pytest
import torch
from engine_worlds import in_threads, whole

from hpcdl.engine.learner import Learner
from hpcdl.engine.update import Step
from hpcdl.spec.data import Data
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.job import Communication, Overlap
from hpcdl.spec.training import Optimizer, Training

CPU = torch.device("cpu")
BATCH = 8
STEPS = 2
SGD_LIKE = Optimizer(lr=0.01, eps=0.1, clip=0.5)
"""A large epsilon: with Adam's own, an element whose gradient is rounding noise moves by ± lr."""


def experiment(model, precision="fp32", overlap=None, **training):
    """A few kilobytes a bucket, so that there are several even here."""
    usual = {"optimizer": SGD_LIKE, "bucket_mib": 0.002, "global_batch": BATCH}
    return Experiment(
        model=model,
        data=Data(source="stdlib"),
        training=Training(steps=STEPS, precision=precision, **usual | training),
        communication=Communication(overlap=Overlap(**overlap or {})),
    )


def batches(settings):
    """Rows of every step, inputs and targets together."""
    generator, model = torch.Generator().manual_seed(5), settings.model
    shape = (settings.training.global_batch, model.sequence + 1)
    return [torch.randint(0, model.vocab, shape, generator=generator) for _ in range(STEPS)]


def trained(settings, decomposition):
    """Outcomes of all steps, full gradients of the first step, full weights after the last."""

    def work(transport):
        learner = Learner(settings, decomposition, transport, CPU)
        shard, shards = learner.topology.batch_shard, decomposition.batch_shards
        outcomes, first_gradients = [], []
        for step, tokens in enumerate(batches(settings), 1):
            rows = tokens.chunk(shards)[shard]
            outcomes.append(learner.step(Step(step, SGD_LIKE.lr), rows[:, :-1], rows[:, 1:]))
            first_gradients = first_gradients or [slot.gradient.clone() for slot in learner.gradients.slots]
        held = learner.stage.held
        # With ZeRO-1 a rank has the sum of its own share only.
        gradients = [] if decomposition.zero else list(zip(held, first_gradients, strict=True))
        return outcomes, gradients, [(one, one.parameter.detach().float()) for one in held]

    answers = in_threads(decomposition.ranks, work)
    assert all(answer[0] == answers[0][0] for answer in answers), "ranks disagree about the step"
    return (
        answers[0][0],
        whole(decomposition, [a[1] for a in answers]),
        whole(decomposition, [a[2] for a in answers]),
    )


_serial = {}


def serial(settings):
    key = settings.model_dump_json()
    if key not in _serial:
        _serial[key] = trained(settings, Decomposition(microbatch=2))
    return _serial[key]


def assert_transparent(settings, decomposition, tolerance=2e-6):
    """Every tensor within ``tolerance`` of its largest element: rounding of sums in another order."""
    outcomes, gradients, weights = trained(settings, decomposition)
    expected_outcomes, expected_gradients, expected_weights = serial(settings)
    for outcome, expected in zip(outcomes, expected_outcomes, strict=True):
        assert outcome.loss == pytest.approx(expected.loss, rel=tolerance)
        assert outcome.grad_norm == pytest.approx(expected.grad_norm, rel=tolerance)
    assert weights.keys() == expected_weights.keys()
    assert decomposition.zero or gradients.keys() == expected_gradients.keys()
    for found, wanted in ((gradients, expected_gradients), (weights, expected_weights)):
        for name, value in wanted.items() if found else ():
            error = (found[name] - value).abs().max() / value.abs().max()
            assert error < tolerance, f"{name}: {error}"
