"""However the update is spread and overlapped, it is the same update."""

import math
import shutil

import pytest
import torch
from engine_runs import TRAINING, Run
from engine_worlds import GPT, LLAMA, in_threads, whole

from hpcdl.engine.learner import Learner
from hpcdl.engine.topology import Topology
from hpcdl.engine.update import Step
from hpcdl.errors import EngineError, PeerLostError
from hpcdl.spec.data import Data
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.job import Communication, Overlap
from hpcdl.spec.model import Model
from hpcdl.spec.training import LossScale, Optimizer, Training

CPU = torch.device("cpu")
BATCH = 8
STEPS = 2
TIED = Model(**LLAMA.model_dump() | {"tied": True})
CLIPPED = Optimizer(
    lr=0.01, eps=0.1, clip=0.5
)  # a large epsilon: rounding noise shall not move a weight by lr
FREE = Optimizer(lr=0.01, eps=0.1, clip=0.0)

SPREAD = [
    {"data": 2}, {"data": 3}, {"z": 2}, {"data": 2, "z": 2}, {"data": 2, "x": 2}, {"data": 2, "y": 2, "z": 2},
    {"data": 2, "pipeline": 2}, {"data": 2, "pipeline": 2, "z": 2}, {"pipeline": 2, "x": 2, "z": 2},
]  # fmt: skip


def experiment(model=GPT, overlap=None, **training):
    usual = {"precision": "fp32", "optimizer": CLIPPED, "bucket_mib": 0.01, "buckets_per_chunk": 2}
    return Experiment(
        model=model,
        data=Data(source="stdlib"),
        training=Training(steps=STEPS, **{"global_batch": BATCH} | usual | training),
        communication=Communication(overlap=overlap or Overlap()),
    )


def batches(settings):
    generator = torch.Generator().manual_seed(5)
    shape = (settings.training.global_batch, settings.model.sequence + 1)
    return [torch.randint(0, settings.model.vocab, shape, generator=generator) for _ in range(3)]


def learn(learner, settings, steps, *, begin=0):
    topology, outcomes = learner.topology, []
    for step, tokens in list(enumerate(batches(settings), 1))[begin:steps]:
        rows = tokens.chunk(topology.decomposition.batch_shards)[topology.batch_shard]
        outcomes.append(learner.step(Step(step, settings.training.optimizer.lr), rows[:, :-1], rows[:, 1:]))
    return outcomes


def trained(settings, decomposition):
    """Outcomes of all steps, and full weights after the last."""

    def work(transport):
        learner = Learner(settings, decomposition, transport, CPU)
        outcomes = learn(learner, settings, STEPS)
        return outcomes, [(one, one.parameter.detach().float()) for one in learner.stage.held]

    answers = in_threads(decomposition.ranks, work)
    assert all(answer[0] == answers[0][0] for answer in answers), "ranks disagree about the step"
    return answers[0][0], whole(decomposition, [answer[1] for answer in answers])


def batch_of(degrees):
    return 6 if degrees.get("data") == 3 else BATCH


def same(found, wanted, tolerance):
    for outcome, expected in zip(found[0], wanted[0], strict=True):
        assert outcome.loss == pytest.approx(expected.loss, rel=tolerance)
        assert outcome.grad_norm == pytest.approx(expected.grad_norm, rel=tolerance)
    for name, value in wanted[1].items():
        error = (found[1][name] - value).abs().max() / value.abs().max()
        assert error <= tolerance, f"{name}: {error}"


def assert_zero_trains_as_the_serial_one(model, degrees, optimizer):
    settings = experiment(model, optimizer=optimizer, global_batch=batch_of(degrees))
    same(trained(settings, Decomposition(zero=1, **degrees)), trained(settings, Decomposition()), 2e-6)


@pytest.mark.parametrize("degrees", SPREAD, ids=lambda degrees: str(Decomposition(**degrees)))
def test_zero_trains_as_the_serial_one(degrees):
    assert_zero_trains_as_the_serial_one(GPT, degrees, CLIPPED)


@pytest.mark.parametrize("degrees", SPREAD[-3:], ids=lambda degrees: str(Decomposition(**degrees)))
def test_zero_trains_a_tied_model_across_the_pipeline(degrees):
    assert_zero_trains_as_the_serial_one(TIED, degrees, FREE)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [CLIPPED, FREE], ids=["clip", "free"])
@pytest.mark.parametrize("degrees", SPREAD, ids=lambda degrees: str(Decomposition(**degrees)))
def test_zero_trains_any_model_as_the_serial_one(degrees, optimizer):
    assert_zero_trains_as_the_serial_one(TIED, degrees, optimizer)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("degrees", [{"data": 2}, {"data": 2, "z": 2, "pipeline": 2}], ids=str)
def test_zero_changes_no_bit_where_sums_are_made_in_one_order(degrees, precision):
    """Without clipping, as the norm is summed in another order."""
    settings = experiment(TIED, optimizer=FREE, precision=precision)
    found, wanted = (trained(settings, Decomposition(zero=zero, **degrees)) for zero in (1, 0))
    assert [outcome.loss for outcome in found[0]] == [outcome.loss for outcome in wanted[0]]
    assert all(torch.equal(found[1][name], value) for name, value in wanted[1].items())


@pytest.mark.parametrize("degrees", [{}, {"pipeline": 2}, {"x": 2}], ids=str)
def test_zero_with_nobody_to_share_with_changes_nothing(degrees):
    settings = experiment()
    found, wanted = (trained(settings, Decomposition(zero=zero, **degrees)) for zero in (1, 0))
    assert found[0] == wanted[0]
    assert all(torch.equal(found[1][name], value) for name, value in wanted[1].items())


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("optimizer", [CLIPPED, FREE], ids=["clip", "free"])
@pytest.mark.parametrize(
    "overlap", [{"optimizer": False}, {"gradient_reduction": False, "optimizer": False}], ids=["own", "none"]
)
def test_overlap_changes_no_bit(overlap, optimizer, zero):
    decomposition = Decomposition(data=2, pipeline=2, zero=zero)
    found, wanted = (
        trained(experiment(TIED, chosen, optimizer=optimizer), decomposition)
        for chosen in (Overlap(**overlap), Overlap())
    )
    assert found[0] == wanted[0]
    assert all(torch.equal(found[1][name], value) for name, value in wanted[1].items())


@pytest.mark.parametrize(
    "size", [{"bucket_mib": 0.001}, {"bucket_mib": 25.0}, {"buckets_per_chunk": 1}], ids=str
)
def test_sizes_change_nothing_with_zero(size):
    decomposition = Decomposition(data=2, z=2, zero=1)
    found = trained(experiment(**{"optimizer": FREE} | size), decomposition)
    wanted = trained(experiment(optimizer=FREE), decomposition)
    assert all(torch.equal(found[1][name], value) for name, value in wanted[1].items())


# What a checkpoint keeps


@pytest.mark.parametrize(
    ("model", "zero"), [(GPT, 1), (TIED, 1), (TIED, 0)], ids=["gpt 1", "tied 1", "tied 0"]
)
@pytest.mark.parametrize("degrees", [{}, {"y": 2}, {"pipeline": 3}, *SPREAD], ids=str)
def test_every_element_is_written_by_exactly_one_rank(degrees, model, zero):
    decomposition = Decomposition(zero=zero, **degrees)
    settings = experiment(model, global_batch=batch_of(degrees))

    def work(transport):
        return Learner(settings, decomposition, transport, CPU).parts()

    written = {}
    for rank, parts in enumerate(in_threads(decomposition.ranks, work)):
        topology = Topology(decomposition, rank)
        for part in parts:
            assert {len(tensor) for tensor in part.tensors.values()} == {part.span.stop - part.span.start}
            counts = written.setdefault(part.name, torch.zeros(part.sharding.shape))
            block = counts[part.sharding.block(topology)].reshape(-1).clone()
            block[part.span] += part.writes
            counts[part.sharding.block(topology)] = block.view(part.sharding.block_shape(topology))
    assert all((counts == 1).all() for counts in written.values())
    assert sum(counts.numel() for counts in written.values()) == model.parameters


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_goes_on_bitwise_from_its_parts(precision, zero):
    decomposition = Decomposition(data=2, pipeline=2, zero=zero)
    settings = experiment(TIED, precision=precision)

    def work(transport):
        first, second, fresh = (Learner(settings, decomposition, transport, CPU) for _ in range(3))
        learn(first, settings, 2)
        learn(second, settings, 1)
        with torch.no_grad():
            for to, kept in zip(fresh.parts(), second.parts(), strict=True):
                for name, tensor in to.tensors.items():
                    assert tensor.dtype == torch.float32
                    tensor.copy_(kept.tensors[name])
        fresh.restored(second.counters())
        learn(fresh, settings, 2, begin=1)
        assert fresh.counters() == first.counters()
        pairs = zip(fresh.stage.held, first.stage.held, strict=True)
        return all(torch.equal(one.parameter, other.parameter) for one, other in pairs)

    assert all(in_threads(decomposition.ranks, work))


# fp16


@pytest.mark.parametrize("degrees", [{}, {"data": 2, "z": 2, "zero": 1}, {"pipeline": 2, "y": 2}], ids=str)
def test_fp16_stays_close_to_fp32(degrees):
    """It keeps 11 bits; the scale is a power of two, which costs none."""
    found = trained(experiment(precision="fp16"), Decomposition(**degrees))
    wanted = trained(experiment(), Decomposition())
    for outcome, expected in zip(found[0], wanted[0], strict=True):
        assert outcome.loss == pytest.approx(expected.loss, rel=5e-4)
        assert outcome.grad_norm == pytest.approx(expected.grad_norm, rel=5e-3)
    for name, value in wanted[1].items():
        assert (found[1][name] - value).abs().max() < 4e-3 * value.abs().max(), name


@pytest.mark.parametrize("degrees", [{"data": 2}, {"data": 2, "zero": 1}, {"pipeline": 2, "x": 2}], ids=str)
def test_an_overflow_on_one_rank_is_skipped_by_all(degrees):
    """Only what one rank brings is infinite, and only in the second step."""
    decomposition = Decomposition(**degrees)
    settings = experiment(precision="fp16")

    def work(transport):
        learner = Learner(settings, decomposition, transport, CPU)
        first = learn(learner, settings, 1)
        before = [one.parameter.clone() for one in learner.stage.held]
        if transport.rank == decomposition.ranks - 1:
            spoil(learner)
        second = learn(learner, settings, 2, begin=1)
        unchanged = all(
            torch.equal(one.parameter, old) for one, old in zip(learner.stage.held, before, strict=True)
        )
        scale = learner.counters()["loss_scale"]
        third = learn(learner, settings, 3, begin=2)
        return first + second + third, unchanged, scale, learner.counters()

    answers = in_threads(decomposition.ranks, work)
    assert all(answer[0] == answers[0][0] for answer in answers)
    outcomes, unchanged, scale, counters = answers[0]
    assert [outcome.skipped for outcome in outcomes] == [False, True, False]
    assert outcomes[1].grad_norm == math.inf
    assert unchanged
    assert scale == 2.0**15
    assert (counters["updates"], counters["loss_scale"], counters["loss_scale_clean"]) == (2, 2.0**15, 1)


def spoil(learner, value=math.inf):
    """Let one gradient of the next batch be ``value``."""
    deposit = next(one.deposit for one in learner.stage.held if not one.deposit.by_autograd)
    add = deposit.add

    def once(gradient):
        deposit.add = add
        add(torch.full_like(gradient, value))

    deposit.add = once


def test_a_scale_that_makes_the_loss_overflow_comes_down_until_gradients_are_finite():
    """The logits' gradients are at most about the scale over the tokens of the batch, of 65504 in fp16."""
    scale = LossScale(initial=2.0**24, largest=2.0**24)
    outcomes, _ = trained(experiment(precision="fp16", loss_scale=scale), Decomposition(data=2))
    assert outcomes[0].skipped
    assert outcomes[0].loss == pytest.approx(math.log(256), rel=0.01)


# What is not a number


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("optimizer", [CLIPPED, FREE], ids=["clip", "free"])
def test_a_gradient_that_is_not_finite_names_step_and_rank(optimizer, zero):
    """Also where weights were updated before it was known. It names the first rank that holds the sum.

    The others follow that one: if all said it as of themselves, any of them might be blamed.
    """
    settings, holds = experiment(optimizer=optimizer), "[23]" if zero else "2"

    def work(transport):
        learner = Learner(settings, Decomposition(pipeline=2, data=2, zero=zero), transport, CPU)
        learn(learner, settings, 1)
        if transport.rank >= 2:
            spoil(learner, math.nan)
        words = f"gradient norm became nan in step 2, on rank {holds}$"
        with pytest.raises(EngineError, match=words) as refused:
            learn(learner, settings, 2, begin=1)
        named = refused.value.message.endswith(f"rank {transport.rank}")
        return named, type(refused.value)

    told = in_threads(4, work)
    assert sorted(told, key=lambda each: each[0]) == [(False, PeerLostError)] * 3 + [(True, EngineError)]


# A parameter that no microbatch used


def test_a_parameter_without_a_gradient_is_reduced_as_zero():
    settings = experiment()

    def work(transport):
        learner = Learner(settings, Decomposition(data=2), transport, CPU)
        learn(learner, settings, 1)
        gradients = learner.gradients
        gradients.begin(microbatches=1)
        slot = gradients.slots[0]
        slot.held.deposit.add(torch.ones_like(slot.gradient))
        list(gradients.finished())
        return [one.gradient.sum().item() for one in gradients.slots]

    first, second = in_threads(2, work)
    assert first == second
    assert first[0] == 2 * 16 * 256
    assert not any(first[1:])


# Real processes


@pytest.mark.slow
def test_processes_with_zero_and_fp16_go_on_to_the_bit(tmp_path):
    """Shares of masters, moments and the loss scale go through a checkpoint."""
    changes = {
        "training": TRAINING | {"precision": "fp16", "steps": 4},
        "checkpoint": {"every": 2, "keep": 2},
    }
    run = Run(tmp_path, Decomposition(data=2, microbatch=2, zero=1), **changes).complete()
    undisturbed = run.losses()
    shutil.rmtree(run.folder.checkpoints / "4")
    again = run.complete(attempt=2).losses()
    assert undisturbed[-1] < undisturbed[0] - 0.5
    assert again == [*undisturbed, *undisturbed[2:]]


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_mpi_processes_share_an_update(tmp_path, precision):
    """The new weights travel in the type they have, which MPI may not know."""
    changes = {"communication": {"transport": "mpi"}, "training": TRAINING | {"precision": precision}}
    zero = Run(tmp_path / "zero", Decomposition(data=2, z=2, microbatch=2, zero=1), **changes)
    plain = Run(tmp_path / "plain", Decomposition(data=2, z=2, microbatch=2), **changes)
    for run in (zero, plain):
        run.complete_mpi()
    assert zero.losses(3) == pytest.approx(plain.losses(3), rel=1e-5 if precision == "fp32" else 2e-2)
