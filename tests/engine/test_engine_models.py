"""The built model is the one that the spec counts."""

import pytest
import torch
from engine_worlds import GPT, LLAMA, in_threads, whole
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from hpcdl.engine.groups import make_groups
from hpcdl.engine.models.build import build_stage
from hpcdl.engine.tensor.parameters import Numerics
from hpcdl.engine.topology import Topology
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model

SHAPES = [
    GPT,
    LLAMA,
    Model(family="gpt", layers=1, hidden=32, heads=4, kv_heads=2, vocab=50, sequence=8, tied=False),
    Model(family="llama", layers=2, hidden=24, heads=6, kv_heads=1, vocab=30, sequence=10, tied=True),
]


def built(transport, model, decomposition):
    topology = Topology(decomposition, transport.rank)
    groups = make_groups(transport, topology, tied=model.tied)
    return build_stage(model, topology, groups, Numerics(torch.float32, torch.device("cpu"), 0))


def serial(model):
    return in_threads(1, lambda transport: built(transport, model, Decomposition()))[0]


@pytest.mark.parametrize("model", SHAPES, ids=repr)
def test_parameters_are_as_many_as_the_spec_counts(model):
    stage = serial(model)
    assert sum(parameter.numel() for parameter in stage.parameters()) == model.parameters
    assert sum(held.parameter.numel() for held in stage.held) == model.parameters


@pytest.mark.parametrize("model", SHAPES, ids=repr)
def test_forward_flops_are_as_many_as_the_spec_counts(model):
    """torch's own counter, which takes the whole score square as the spec does."""
    tokens = torch.zeros(3, model.sequence, dtype=torch.long)
    # torch has the formula of flash attention, but not under the operator's name on CPU.
    named = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop.__wrapped__}
    counter = FlopCounterMode(display=False, custom_mapping=named)
    with counter:
        serial(model).chunks[0](tokens, tokens)
    assert counter.get_total_flops() == 3 * model.forward_flops


@pytest.mark.parametrize("model", SHAPES, ids=repr)
def test_first_loss_is_that_of_a_uniform_guess(model):
    """Small initial weights know nothing: the loss a token is close to log(vocab)."""
    tokens = torch.randint(
        0, model.vocab, (4, model.sequence + 1), generator=torch.Generator().manual_seed(0)
    )
    loss = serial(model).chunks[0](tokens[:, :-1], tokens[:, 1:]) / tokens[:, 1:].numel()
    assert loss.item() == pytest.approx(torch.tensor(float(model.vocab)).log().item(), rel=0.05)


@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
def test_later_tokens_do_not_change_earlier_losses(model):
    """Attention is causal and positions are counted from the left."""
    stage = serial(model)
    tokens = torch.randint(0, model.vocab, (1, model.sequence), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % model.vocab
    stream, other = (run_layers(stage.chunks[0], batch) for batch in (tokens, changed))
    assert torch.equal(stream[:, :-1], other[:, :-1])
    assert not torch.equal(stream[:, -1], other[:, -1])


def run_layers(chunk, tokens):
    stream = chunk.embedding(tokens)
    for layer in chunk.layers:
        stream = layer(stream)
    return stream


@pytest.mark.parametrize(
    "decomposition",
    [Decomposition(x=2, y=2, z=2), Decomposition(pipeline=3), Decomposition(pipeline=2, data=2, x=2)],
    ids=str,
)
@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
def test_initial_parameters_do_not_depend_on_the_decomposition(model, decomposition):
    def parameters(decomposition):
        stages = in_threads(decomposition.ranks, lambda transport: built(transport, model, decomposition))
        return whole(decomposition, [[(held, held.parameter) for held in stage.held] for stage in stages])

    expected, found = parameters(Decomposition()), parameters(decomposition)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_recomputation_keeps_fewer_tensors():
    """Full recomputation saves one tensor a layer for backward, plus what the two ends save."""

    def saved(recompute):
        kept = []
        stage = in_threads(1, lambda transport: built(transport, LLAMA, Decomposition(recompute=recompute)))[
            0
        ]
        tokens = torch.zeros(1, LLAMA.sequence, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            stage.chunks[0](tokens, tokens)
        return sum(kept)

    assert saved("full") < saved("none") / 2
