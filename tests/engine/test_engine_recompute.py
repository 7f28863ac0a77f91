"""What each recomputation keeps, and that training does not see it."""

from collections import Counter

import pytest
import torch
from engine_transparency import assert_transparent, experiment
from engine_worlds import GPT, LLAMA, in_threads
from test_engine_models import built
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hpcdl.engine.tensor.dropout import Rows
from hpcdl.engine.tensor.recompute import recomputed, remade
from hpcdl.spec.decomposition import Decomposition

DROPPING = [model.model_copy(update={"dropout": 0.1}) for model in (GPT, LLAMA)]
LONG = [
    model.model_copy(update={"sequence": 64, "vocab": 16, "layers": 4}) for model in (GPT, LLAMA, *DROPPING)
]
NAMES = ["gpt", "llama", "gpt dropping", "llama dropping"]
BYTES = torch.finfo(torch.float32).bits // 8


class Alive(TorchDispatchMode):
    """Storages that operators made, as long as they live; those of ``parameters`` do not count."""

    def __init__(self, parameters):
        super().__init__()
        self._made = {}
        self._known = {parameter.untyped_storage()._cdata for parameter in parameters}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage._cdata in self._known:
                    continue
                self._made[storage._cdata] = (
                    torch.multiprocessing.reductions.StorageWeakRef(storage),
                    storage.nbytes(),
                )
        return result

    def bytes(self):
        return sum(size for weak, size in self._made.values() if not weak.expired())


def kept(model, **recompute):
    """Bytes that a forward leaves alive for its backward."""
    stage = in_threads(1, lambda transport: built(transport, model, Decomposition(**recompute)))[0]
    tokens = torch.zeros(2, model.sequence, dtype=torch.long)
    with Alive(stage.parameters()) as alive:
        loss = stage.chunks[0](tokens, tokens, Rows(1, 0))
    kept_bytes = alive.bytes()
    loss.backward()
    return kept_bytes


@pytest.mark.parametrize("model", LONG, ids=NAMES)
def test_each_recomputation_keeps_less_than_the_one_before(model):
    none, selective, full, pairs = (
        kept(model),
        kept(model, recompute="selective"),
        kept(model, recompute="full"),
        kept(model, recompute="full", recompute_every=2),
    )
    assert none > selective > full > pairs


@pytest.mark.parametrize("model", LONG[:2], ids=NAMES[:2])
def test_full_recomputation_keeps_a_stream_a_group(model):
    stream = 2 * model.sequence * model.hidden * BYTES
    each, pairs = (kept(model, recompute="full", recompute_every=every) for every in (1, 2))
    assert each - pairs == 2 * stream


@pytest.mark.parametrize("model", DROPPING, ids=NAMES[2:])
@pytest.mark.parametrize(
    "degrees",
    [
        {"recompute": "selective"},
        {"recompute": "selective", "x": 2, "z": 2},
        {"recompute": "selective", "pipeline": 3, "y": 2},
        {"recompute": "full", "recompute_every": 2, "x": 2, "z": 2},
        {"recompute": "full", "recompute_every": 3, "pipeline": 2, "data": 2},
    ],
    ids=str,
)
def test_recomputation_changes_nothing(model, degrees):
    """Also with dropout: the second forward drops what the first one dropped."""
    assert_transparent(experiment(model), Decomposition(**degrees))


def gradients(run):
    torch.manual_seed(0)
    first, second = nn.Linear(8, 16), nn.Linear(16, 4)
    source = torch.randn(3, 8, requires_grad=True)
    run(first, second, source).square().sum().backward()
    return [source.grad, first.weight.grad, second.weight.grad]


def test_what_is_remade_has_the_same_gradients():
    plain = gradients(lambda first, second, source: second(first(source).tanh()))
    again = gradients(lambda first, second, source: remade(torch.tanh, first(source), second))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_what_is_recomputed_runs_once_more_in_backward():
    runs = Counter()

    def function(values, name):
        runs[name] += 1
        return values.exp()

    output = recomputed(function, torch.ones(2, requires_grad=True), "it")
    assert runs == {"it": 1}
    output.sum().backward()
    assert runs == {"it": 2}
