"""Pruned training is dense training under a mask, in any decomposition; what is pruned is zero and stays so."""

import weakref

import pytest
import torch
from engine_pruning import CPU, SGD_LIKE, Trained, dense_masked, experiment, learn, learner_of, smallest_gone
from engine_worlds import GPT, LLAMA, in_threads
from quick import first_of

from hpcdl.engine.learner import Learner
from hpcdl.engine.optim.carry import whole
from hpcdl.engine.pruning import Pruner
from hpcdl.engine.sparse.masks import prunable
from hpcdl.engine.sparse.schedule import sparsity_after
from hpcdl.engine.topology import Topology
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model
from hpcdl.spec.training import LossScale, Pruning

SIX = Model(**GPT.model_dump() | {"layers": 6})
TIED = Model(**LLAMA.model_dump() | {"tied": True})
MODELS = {"gpt": GPT, "llama": LLAMA, "tied": TIED, "six": SIX}
ONCE = Pruning(sparsity=0.6)
LATER = Pruning(sparsity=0.7, begin=2)
ALL = Pruning(sparsity=0.5, scope="global", exclude=())
GRADUAL = Pruning(sparsity=0.8, schedule="cubic", begin=0, end=3, every=1)
PATTERN = Pruning(sparsity=0.5, pattern="2:4", begin=1)
KINDS = {"once": ONCE, "later": LATER, "global": ALL, "cubic": GRADUAL, "2:4": PATTERN}


def drawing(model, pruning):
    """What draws the masks of the reference, by sorting whole matrices."""

    def draw(step, weights):
        actions = {"once": [pruning.begin], "cubic": [1, 2, 3]}[pruning.schedule]
        if step not in actions:
            return None
        names = prunable({name: value.shape for name, value in weights.items()}, pruning.exclude)
        if pruning.pattern:
            return {name: two_of_four(weights[name]) for name in names}
        sparsity = sparsity_after(pruning, step)
        if pruning.scope == "layer":
            return {name: smallest_gone(weights[name], sparsity) for name in names}
        together = smallest_gone(torch.cat([weights[name].flatten() for name in names]), sparsity)
        parts = together.split([weights[name].numel() for name in names])
        return {name: part.view(weights[name].shape) for name, part in zip(names, parts, strict=True)}

    return draw


def two_of_four(weights):
    groups = weights.abs().view(-1, 4)
    third = groups.sort(dim=1).values[:, 1:2]
    return (groups > third).view(weights.shape)


_references = {}


def assert_dense_masked(model, pruning, decomposition, tolerance=2e-6, **training):
    settings = experiment(model, pruning=pruning, **training)
    key = settings.model_dump_json()
    if key not in _references:
        _references[key] = dense_masked(settings, drawing(model, pruning))
    losses, norms, weights, masks = _references[key]
    found = Trained(settings, decomposition)
    assert found.masks.keys() == masks.keys()
    for name, mask in masks.items():
        assert torch.equal(found.masks[name].bool(), mask), name
        assert not found.weights[name][~mask].any(), name
    for outcome, loss, norm in zip(found.outcomes, losses, norms, strict=True):
        assert outcome.loss == pytest.approx(loss, rel=tolerance)
        assert outcome.grad_norm == pytest.approx(norm, rel=tolerance)
    assert found.weights.keys() == weights.keys()
    for name, value in weights.items():
        error = (found.weights[name] - value).abs().max() / value.abs().max()
        assert error < tolerance, f"{name}: {error}"
    sizes = sum(mask.numel() for mask in masks.values())
    left = sum(int(mask.sum()) for mask in masks.values())
    assert found.reports[-1]["sparsity"] == pytest.approx(1 - left / sizes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["gpt", "llama", "tied"])
def test_alone_it_is_dense_training_under_a_mask(model, kind):
    assert_dense_masked(MODELS[model], KINDS[kind], Decomposition(microbatch=2))


SPREAD = [
    {"data": 2}, {"pipeline": 3}, {"x": 2}, {"y": 2}, {"z": 2}, {"data": 2, "zero": 1},
    {"data": 2, "z": 2, "zero": 1}, {"pipeline": 2, "x": 2}, {"data": 2, "pipeline": 2, "y": 2, "zero": 1},
    {"pipeline": 3, "interleave": 2, "defer_weights": True}, {"pipeline": 2, "x": 2, "y": 2, "z": 2},
    {"pipeline": 2, "z": 2, "recompute": "full"}, {"data": 2, "z": 2, "offload": "optimizer"},
]  # fmt: skip


@pytest.mark.parametrize("degrees", SPREAD, ids=str)
@pytest.mark.parametrize("kind", first_of("global", "cubic"))
def test_spread_it_is_dense_training_under_a_mask(kind, degrees):
    """Of the global threshold the embedding is pruned too, which a tied head shares."""
    model = SIX if "interleave" in degrees else TIED if kind == "global" else GPT
    assert_dense_masked(model, KINDS[kind], Decomposition(**degrees))


@pytest.mark.parametrize("degrees", [{"data": 2}, {"data": 2, "z": 2, "zero": 1}], ids=str)
def test_buckets_updated_while_others_are_reduced_are_expanded(degrees):
    """Without clipping each chunk is updated and brought home before the next is reduced."""
    free = SGD_LIKE.model_copy(update={"clip": 0.0})
    assert_dense_masked(GPT, GRADUAL, Decomposition(**degrees), optimizer=free)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", SPREAD, ids=str)
@pytest.mark.parametrize("kind", ["once", "later", "2:4"])
@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_any_model_spread_is_dense_training_under_a_mask(model, kind, degrees):
    model = SIX if "interleave" in degrees else MODELS[model]
    assert_dense_masked(model, KINDS[kind], Decomposition(**degrees))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("degrees", [{}, {"data": 2, "z": 2, "zero": 1}, {"pipeline": 2, "x": 2}], ids=str)
def test_half_precision_stays_close_to_fp32(precision, degrees):
    """bf16 keeps 8 bits and fp16 11; both add the gradients of microbatches in that precision here."""
    settings = experiment(GPT, precision=precision, pruning=ONCE)
    losses, norms, _, masks = dense_masked(settings, drawing(GPT, ONCE))
    found = Trained(settings, Decomposition(**degrees))
    for outcome, loss, norm in zip(found.outcomes, losses, norms, strict=True):
        assert outcome.loss == pytest.approx(loss, rel=2e-3)
        assert outcome.grad_norm == pytest.approx(norm, rel=3e-2)
    for name, mask in found.masks.items():  # drawn of rounded weights, which have ties
        assert (mask.bool() != masks[name]).float().mean() < 0.01, name
        assert not found.weights[name][~mask.bool()].any(), name


def test_a_rank_with_nothing_pruned_sums_the_same_type():
    """The ends of a tied pipeline add their gradients of the embedding, though only one has pruned layers."""
    pruning = Pruning(sparsity=0.6, exclude=("embedding.*", "layers.0.*"))
    settings, decomposition = experiment(TIED, "bf16", pruning), Decomposition(pipeline=3)

    def work(transport):
        learner = Learner(settings, decomposition, transport, CPU)
        Pruner(pruning, learner, lambda *_, **__: None).begin(0)
        learn(learner, settings, 1)
        return len(learner.kept), {slot.gradient.dtype for slot in learner.gradients.slots}

    answers = in_threads(3, work)
    assert [kept > 0 for kept, _ in answers] == [False, True, True]
    assert all(types == {torch.bfloat16} for _, types in answers)


def test_fp16_overflows_are_skipped_and_the_scale_survives_pruning():
    scale = LossScale(initial=2.0**24, largest=2.0**24)
    pruning = Pruning(sparsity=0.6, begin=2)
    settings = experiment(GPT, precision="fp16", pruning=pruning, loss_scale=scale)
    found = Trained(settings, Decomposition(data=2, zero=1), steps=12)
    skipped = [outcome.skipped for outcome in found.outcomes]
    assert skipped[:3] == [True] * 3
    assert skipped == sorted(skipped, reverse=True)
    assert not skipped[-1]


def test_pruning_after_every_step_is_monotone():
    found = Trained(experiment(GPT, pruning=GRADUAL), Decomposition(data=2, z=2, zero=1))
    wanted = [sparsity_after(GRADUAL, step) for step in (1, 2, 3)]
    assert [report["step"] for report in found.reports] == [1, 2, 3]
    assert [report["sparsity"] for report in found.reports] == pytest.approx(wanted, abs=1e-3)


def test_gradients_come_once_after_several_prunings():
    """Autograd's hooks of before are gone, and so is the memory they wrote to."""
    settings = experiment(GPT, pruning=GRADUAL)
    learner, pruner = learner_of(settings)
    tables = [held.parameter for held in learner.stage.held if held.deposit.by_autograd]
    buffers = [weakref.ref(slot.gradient) for slot in learner.gradients.slots]
    hooks = [len(parameter._post_accumulate_grad_hooks) for parameter in tables]
    for step in range(1, 4):
        learn(learner, settings, step)
        pruner.act(step)
    assert len(learner.kept) == 12
    assert [len(parameter._post_accumulate_grad_hooks) for parameter in tables] == hooks
    assert not [buffer for buffer in buffers if buffer() is not None]


def test_masters_and_moments_are_those_of_before():
    settings = experiment(GPT, pruning=LATER)
    learner, pruner = learner_of(settings)
    for step in (1, 2):
        learn(learner, settings, step)
    kinds = ("master", "exp_avg", "exp_avg_sq")
    names = [held.name for held in learner.stage.held]
    before = {name: {kind: whole(learner._flat, name, kind) for kind in kinds} for name in names}
    counters = learner.counters()
    pruner.act(2)
    assert learner.counters() == counters == {"updates": 2.0}
    assert len(learner.kept) == 12
    for name, states in before.items():
        kept = learner.kept.get(name)
        for kind, values in states.items():
            wanted = values if kept is None else values[kept.mask]
            assert torch.equal(whole(learner._flat, name, kind), wanted), (name, kind)


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize(
    "degrees", [{}, {"data": 2}, {"data": 2, "z": 2}, {"pipeline": 2, "x": 2, "z": 2}], ids=str
)
def test_every_element_lies_in_a_part_that_one_rank_writes(degrees, zero):
    """Kept or not; and what a part has of a pruned parameter are the kept elements of its span."""
    decomposition = Decomposition(zero=zero, **degrees)

    def work(transport):
        learner = Learner(experiment(TIED), decomposition, transport, CPU)
        Pruner(ALL, learner, lambda *_, **__: None).begin(0)
        weights = {held.name: held.parameter.detach().view(-1) for held in learner.stage.held}
        return learner.parts(), weights

    written = {}
    for rank, (parts, weights) in enumerate(in_threads(decomposition.ranks, work)):
        topology = Topology(decomposition, rank)
        for part in parts:
            span = slice(
                *(end - part.sharding.span(topology).start for end in (part.span.start, part.span.stop))
            )
            dense = torch.zeros(span.stop - span.start)
            dense[slice(None) if part.index is None else part.index] = part.tensors["master"]
            assert torch.equal(dense, weights[part.name][span]), part.name
            counts = written.setdefault(part.name, torch.zeros(part.sharding.shape))
            block = counts[part.sharding.block(topology)].reshape(-1).clone()
            block[part.span] += part.writes
            counts[part.sharding.block(topology)] = block.view(part.sharding.block_shape(topology))
    assert all((counts == 1).all() for counts in written.values())
    assert sum(counts.numel() for counts in written.values()) == TIED.parameters
