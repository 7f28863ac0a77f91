"""Pruning with what waits in host memory: the same masks, losses and weights."""

import pytest
import torch
from engine_pruning import SGD_LIKE, Trained, experiment
from engine_worlds import GPT
from quick import one_in

from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.training import Pruning

CUBIC = Pruning(sparsity=0.8, schedule="cubic", begin=1, end=3, every=1)
ONCE = Pruning(sparsity=0.5, scope="global", begin=1)


@pytest.mark.parametrize("pruning", [CUBIC, ONCE], ids=["cubic", "once"])
@pytest.mark.parametrize(
    "offload",
    [
        {"offload": "optimizer"},
        {"offload": "parameters"},
        {"offload": "parameters", "recompute": "full", "offload_activations": True},
    ],
    ids=["optimizer", "parameters", "activations"],
)
@pytest.mark.parametrize(
    "degrees", one_in(2, [{}, {"data": 2, "zero": 1}, {"z": 2, "pipeline": 2}, {"x": 2, "data": 2}]), ids=str
)
def test_a_pruned_model_trains_alike_wherever_its_state_waits(degrees, offload, pruning):
    optimizer = SGD_LIKE.model_copy(
        update={"clip": 0.0} if degrees.get("zero") else {}
    )  # a shared norm rounds
    settings = experiment(GPT, pruning=pruning, optimizer=optimizer)
    kept = {key: value for key, value in offload.items() if key == "recompute"}
    found = Trained(settings, Decomposition(**degrees, **offload))
    wanted = Trained(settings, Decomposition(**degrees, **kept))
    assert [one.loss for one in found.outcomes] == [one.loss for one in wanted.outcomes]
    assert found.reports == wanted.reports
    for name, value in wanted.weights.items():
        assert torch.equal(found.weights[name], value), name
    assert all(torch.equal(found.masks[name], mask) for name, mask in wanted.masks.items())
