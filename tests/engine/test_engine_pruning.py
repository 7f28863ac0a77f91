"""Pruned training is dense training under a mask, in any decomposition; what is pruned is zero and stays so."""

import pytest
import torch
from engine_pruning import Trained, dense_masked, experiment, smallest_gone
from engine_worlds import GPT, LLAMA

from hpcdl.engine.sparse.masks import prunable
from hpcdl.engine.sparse.schedule import sparsity_after
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model
from hpcdl.spec.training import Pruning

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
@pytest.mark.parametrize("kind", ["global", "cubic"])
def test_spread_it_is_dense_training_under_a_mask(kind, degrees):
    """Of the global threshold the embedding is pruned too, which a tied head shares."""
    model = SIX if "interleave" in degrees else TIED if kind == "global" else GPT
    assert_dense_masked(model, KINDS[kind], Decomposition(**degrees))


@pytest.mark.slow
@pytest.mark.parametrize("degrees", SPREAD, ids=str)
@pytest.mark.parametrize("kind", ["once", "later", "2:4"])
@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_any_model_spread_is_dense_training_under_a_mask(model, kind, degrees):
    model = SIX if "interleave" in degrees else MODELS[model]
    assert_dense_masked(model, KINDS[kind], Decomposition(**degrees))
