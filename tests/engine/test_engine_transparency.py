"""However a model is spread, it trains as the serial one: loss, gradients and updated weights."""

import pytest
import torch
from engine_worlds import GPT, LLAMA, in_threads, whole

from hpcdl.engine.learner import Learner
from hpcdl.spec.data import Data
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.model import Model
from hpcdl.spec.training import Optimizer, Training

CPU = torch.device("cpu")
BATCH = 8
STEPS = 2
SGD_LIKE = Optimizer(lr=0.01, eps=0.1, clip=0.5)
"""A large epsilon: with Adam's own, an element whose gradient is rounding noise moves by ± lr."""

AXES = [
    {"data": 2}, {"pipeline": 2}, {"pipeline": 3}, {"x": 2}, {"y": 2}, {"z": 2}, {"x": 4}, {"y": 4}, {"z": 4},
]  # fmt: skip
PRODUCTS = [
    {"x": 2, "y": 2}, {"x": 2, "z": 2}, {"y": 2, "z": 2}, {"data": 2, "z": 2}, {"data": 2, "pipeline": 2},
    {"pipeline": 3, "x": 2}, {"x": 2, "y": 2, "z": 2}, {"pipeline": 2, "y": 2, "z": 2},
    {"data": 2, "pipeline": 2, "x": 2}, {"data": 2, "x": 2, "y": 2}, {"pipeline": 3, "x": 2, "y": 2},
    {"pipeline": 3, "z": 2}, {"data": 2, "pipeline": 2, "z": 2, "microbatch": 2},
]  # fmt: skip
LARGE = [
    pytest.param({"data": 2, "pipeline": 2, "x": 2, "y": 2}, marks=pytest.mark.slow),
    pytest.param({"data": 2, "pipeline": 2, "x": 2, "y": 2, "z": 2}, marks=pytest.mark.slow),
]


def experiment(model, precision="fp32", bucket_mib=0.002):
    """A few kilobytes a bucket, so that there are several even here."""
    training = Training(
        global_batch=BATCH, steps=STEPS, precision=precision, optimizer=SGD_LIKE, bucket_mib=bucket_mib
    )
    return Experiment(model=model, data=Data(source="stdlib"), training=training)


def batches(model):
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randint(0, model.vocab, (BATCH, model.sequence + 1), generator=generator) for _ in range(STEPS)
    ]


def trained(settings, decomposition):
    """Outcomes of all steps, full gradients of the first step, full weights after the last."""

    def work(transport):
        learner = Learner(settings, decomposition, transport, CPU)
        shard, shards = learner.topology.batch_shard, decomposition.batch_shards
        outcomes, first_gradients = [], []
        for step, tokens in enumerate(batches(settings.model), 1):
            rows = tokens.chunk(shards)[shard]
            outcomes.append(learner.step(step, rows[:, :-1], rows[:, 1:], SGD_LIKE.lr))
            first_gradients = first_gradients or [slot.gradient.clone() for slot in learner.gradients.slots]
        held = learner.stage.held
        gradients = list(zip(held, first_gradients, strict=True))
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
    assert gradients.keys() == expected_gradients.keys()
    for found, wanted in ((gradients, expected_gradients), (weights, expected_weights)):
        for name, value in wanted.items():
            error = (found[name] - value).abs().max() / value.abs().max()
            assert error < tolerance, f"{name}: {error}"


@pytest.mark.parametrize(
    "degrees", [*AXES, *PRODUCTS, *LARGE], ids=lambda degrees: str(Decomposition(**degrees))
)
@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
def test_training_does_not_depend_on_the_decomposition(model, degrees):
    assert_transparent(experiment(model), Decomposition(**degrees))


@pytest.mark.parametrize(
    "degrees",
    [{}, {"pipeline": 2}, {"x": 2, "z": 2}, {"pipeline": 3, "y": 2}],
    ids=lambda d: str(Decomposition(**d)),
)
@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
def test_recomputation_changes_nothing(model, degrees):
    assert_transparent(experiment(model), Decomposition(recompute="full", **degrees))


@pytest.mark.parametrize(
    "degrees", [{"pipeline": 2}, {"x": 2, "pipeline": 3}, {"data": 2, "z": 2, "pipeline": 2}],
    ids=lambda d: str(Decomposition(**d)),
)  # fmt: skip
@pytest.mark.parametrize("family", ["gpt", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_tying_works_within_a_stage_and_across_the_pipeline(family, tied, degrees):
    """The embedding and the head of a tied model stay one weight, also where two stages hold it."""
    shape = (GPT if family == "gpt" else LLAMA).model_dump() | {"tied": tied}
    assert_transparent(experiment(Model(**shape)), Decomposition(**degrees))


@pytest.mark.parametrize("bucket_mib", [1e-6, 25.0])
def test_bucket_size_changes_nothing(bucket_mib):
    """A bucket a parameter, or one for all."""
    small, usual = experiment(GPT, bucket_mib=bucket_mib), experiment(GPT)
    decomposition = Decomposition(data=2, z=2)
    found, wanted = trained(small, decomposition), trained(usual, decomposition)
    assert found[0] == wanted[0]
    assert all(torch.equal(found[2][name], value) for name, value in wanted[2].items())


@pytest.mark.parametrize(
    "degrees",
    [{"data": 2}, {"pipeline": 2}, {"x": 2, "y": 2}, {"z": 2}],
    ids=lambda d: str(Decomposition(**d)),
)
@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
def test_bf16_training_stays_close_to_the_serial_one(model, degrees):
    """bf16 keeps 8 bits, so sums in another order differ by about 2⁻⁸; the loss averages them out."""
    settings = experiment(model, precision="bf16")
    outcomes, _, _ = trained(settings, Decomposition(**degrees))
    for outcome, expected in zip(outcomes, serial(settings)[0], strict=True):
        assert outcome.loss == pytest.approx(expected.loss, rel=2e-3)
        assert outcome.grad_norm == pytest.approx(expected.grad_norm, rel=3e-2)


@pytest.mark.parametrize(
    "degrees", [{"data": 2}, {"pipeline": 2, "x": 2}], ids=lambda d: str(Decomposition(**d))
)
def test_padding_weighs_nothing_wherever_it_stands(degrees):
    """The loss is the mean over the counted targets of the whole batch, though shards have unequal numbers."""
    tokens = batches(GPT)[0]
    targets = tokens[:, 1:].clone()
    targets[0] = targets[5, 3:] = -1
    counted = int((targets >= 0).sum())

    def work(decomposition, told):
        def rank(transport):
            learner = Learner(experiment(GPT), decomposition, transport, CPU)
            shard, shards = learner.topology.batch_shard, decomposition.batch_shards
            rows = (part.chunk(shards)[shard] for part in (tokens[:, :-1], targets))
            return learner.step(1, *rows, SGD_LIKE.lr, told)

        return in_threads(decomposition.ranks, rank)[0]

    serial = work(Decomposition(), counted)
    spread = work(Decomposition(**degrees), counted)
    assert spread.loss == pytest.approx(serial.loss, rel=2e-6)
    assert spread.grad_norm == pytest.approx(serial.grad_norm, rel=2e-6)
    padded = work(Decomposition(), None)
    assert serial.loss == pytest.approx(padded.loss * targets.numel() / counted, rel=1e-6)
