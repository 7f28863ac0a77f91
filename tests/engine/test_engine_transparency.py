"""However a model is spread, it trains as the serial one: loss, gradients and updated weights."""

import pytest
import torch
from engine_transparency import CPU, SGD_LIKE, assert_transparent, batches, experiment, serial, trained
from engine_worlds import GPT, LLAMA, Jittery, in_threads

from hpcdl.engine.learner import Learner
from hpcdl.engine.update import Step
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model

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


SCHEDULES = [
    {"microbatch": 3}, {"data": 2, "microbatch": 3}, {"pipeline": 3, "interleave": 2, "microbatch": 3},
    {"pipeline": 2, "interleave": 3, "defer_weights": True}, {"pipeline": 3, "in_flight": 2, "defer_weights": True},
    {"pipeline": 2, "interleave": 2, "data": 2, "z": 2, "defer_weights": True},
    {"pipeline": 2, "interleave": 2, "x": 2, "in_flight": 1, "recompute": "full"},
    {"pipeline": 2, "interleave": 3, "y": 2, "recompute": "full", "defer_weights": True},
]  # fmt: skip


@pytest.mark.parametrize("degrees", SCHEDULES, ids=str)
@pytest.mark.parametrize(("model", "tied"), [(GPT, True), (LLAMA, False)], ids=["tied gpt", "untied llama"])
def test_training_does_not_depend_on_the_schedule(model, tied, degrees):
    shape = model.model_dump() | {"layers": 6, "tied": tied}
    assert_transparent(experiment(Model(**shape)), Decomposition(**degrees))


def evaluated(decomposition, rows):
    """The losses of all ranks before and after an evaluation, and gradients that it left."""

    def work(transport):
        learner = Learner(experiment(SIX), decomposition, transport, CPU)
        tokens = batches(experiment(SIX))[0][:rows]
        part = tokens.chunk(decomposition.batch_shards)[learner.topology.batch_shard]
        losses = [learner.evaluate(part[:, :-1], part[:, 1:]) for _ in range(2)]
        assert all(held.parameter.grad is None for held in learner.stage.held)
        outcome = learner.step(Step(1, 0.0), part[:, :-1], part[:, 1:])
        return [*losses, outcome.loss]

    return in_threads(decomposition.ranks, work, lambda world, rank: Jittery(world, rank, 1))


SIX = Model(**GPT.model_dump() | {"layers": 6})


@pytest.mark.parametrize(
    "degrees",
    [
        {"microbatch": 3}, {"pipeline": 3}, {"pipeline": 3, "interleave": 2, "in_flight": 1},
        {"pipeline": 2, "interleave": 3, "microbatch": 3, "defer_weights": True}, {"data": 2, "pipeline": 2, "z": 2},
        {"pipeline": 2, "interleave": 2, "x": 2, "y": 2, "microbatch": 4},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("rows", [8, 4])
def test_evaluation_says_the_loss_of_a_step_and_changes_nothing(degrees, rows):
    """Also of fewer sequences than a training batch has, and of fewer than a microbatch."""
    ((expected, *_),) = evaluated(Decomposition(), rows)
    for losses in evaluated(Decomposition(**degrees), rows):
        assert losses == pytest.approx([expected] * 3, rel=1e-6)


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
    """Several buckets a parameter, or one for all; but for clipping, as a norm is summed in another order."""
    optimizer = SGD_LIKE.model_copy(update={"clip": 0.0})
    other, usual = (experiment(GPT, bucket_mib=size, optimizer=optimizer) for size in (bucket_mib, 0.002))
    decomposition = Decomposition(data=2, z=2)
    found, wanted = trained(other, decomposition), trained(usual, decomposition)
    assert [outcome.loss for outcome in found[0]] == [outcome.loss for outcome in wanted[0]]
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
    tokens = batches(experiment(GPT))[0]
    targets = tokens[:, 1:].clone()
    targets[0] = targets[5, 3:] = -1
    counted = int((targets >= 0).sum())

    def work(decomposition, told):
        def rank(transport):
            learner = Learner(experiment(GPT), decomposition, transport, CPU)
            shard, shards = learner.topology.batch_shard, decomposition.batch_shards
            rows = (part.chunk(shards)[shard] for part in (tokens[:, :-1], targets))
            return learner.step(Step(1, SGD_LIKE.lr), *rows, told)

        return in_threads(decomposition.ranks, rank)[0]

    serial = work(Decomposition(), counted)
    spread = work(Decomposition(**degrees), counted)
    assert spread.loss == pytest.approx(serial.loss, rel=2e-6)
    assert spread.grad_norm == pytest.approx(serial.grad_norm, rel=2e-6)
    padded = work(Decomposition(), None)
    assert serial.loss == pytest.approx(padded.loss * targets.numel() / counted, rel=1e-6)
