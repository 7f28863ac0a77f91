"""Dropout: a good random stream, and the same one in every decomposition."""

import math
from itertools import combinations

import pytest
import torch
from engine_transparency import assert_transparent, experiment, serial, trained
from engine_worlds import GPT, LLAMA
from hypothesis import given
from hypothesis import strategies as st
from test_engine_tensor import factory

from hpcdl.engine.tensor.dropout import Dropout, Rows, site_key, squares
from hpcdl.engine.tensor.sharding import Sharding
from hpcdl.engine.transport.memory import World
from hpcdl.spec.decomposition import Decomposition

DROPPING = [model.model_copy(update={"dropout": 0.2}) for model in (GPT, LLAMA)]
MODELS = pytest.mark.parametrize("model", DROPPING, ids=["gpt", "llama"])
ALONE = Decomposition()
ROWS = Rows(step=3, first=5)


def site(name="site", shape=(32, 64), probability=0.1, *, grid=ALONE, rank=0, axes=(None, "y")):
    make = factory(World(grid.ranks).transport(rank), grid)
    return Dropout(make, name, Sharding(shape, axes, flat=False), probability)


def kept(dropout, *shape, rows=ROWS):
    """Which elements are kept."""
    return dropout(torch.ones(shape), rows) != 0


@given(st.integers(0, 2**62), st.integers(-(2**63), 2**63 - 1))
def test_squares_wraps_as_64_bit_words_do(counter, key):
    """The four rounds of the paper in integers of any size."""
    word = 2**64
    weyl = state = counter * key % word
    following = (weyl + key) % word
    for added in (weyl, following, weyl):
        state = (state * state + added) % word
        state = (state >> 32) | (state << 32) % word
    expected = (state * state + following) % word >> 32
    assert squares(torch.tensor([counter]), key).item() == expected


@given(st.integers(0, 10**9), st.integers(0, 10**6))
def test_keys_are_odd_and_irregular(seed, step):
    digits = f"{site_key(seed, step, 'layers.0.mlp') % 2**64:016x}"
    assert int(digits[-1], 16) % 2
    assert "0" not in digits
    assert len(set(digits[:8])) == len(set(digits[8:])) == 8


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_for(probability):
    """Within five standard errors, in all and in each row and column; the mean stays."""
    sequences, length, width = 64, 32, 64
    dropout = site(probability=probability)
    mask = kept(dropout, sequences, length, width).double()
    for dims in ((0, 1, 2), (1, 2), (0, 2), (0, 1)):
        share = mask.mean(dim=dims)
        error = math.sqrt(probability * (1 - probability) * share.numel() / mask.numel())
        assert (share - (1 - probability)).abs().max() < 5 * error
    assert dropout(torch.ones(2, 32, 64), ROWS).unique().tolist() == pytest.approx([0, 1 / (1 - probability)])


def test_sites_steps_seeds_sequences_and_neighbours_are_independent():
    """Correlations of what is kept stay within five standard errors."""
    shape = (16, 32, 64)
    masks = [
        kept(site("layers.0.mlp"), *shape),
        kept(site("layers.1.mlp"), *shape),
        kept(site("layers.0.mlp"), *shape, rows=ROWS._replace(step=4)),
        kept(site("layers.0.mlp"), *shape, rows=ROWS._replace(first=5 + 16)),
        kept(site("layers.0.mlp"), *shape).roll(1, 2),
        kept(site("layers.0.mlp"), *shape).roll(1, 1),
        kept(site("layers.0.mlp"), *shape).roll(1, 0),
    ]
    values = [(mask.double() - 0.9).flatten() / 0.3 for mask in masks]
    for one, other in combinations(values, 2):
        assert abs((one * other).mean().item()) < 5 / math.sqrt(one.numel())


def test_evaluation_and_no_probability_drop_nothing():
    values = torch.randn(2, 32, 64)
    assert site()(values, None) is values
    assert site(probability=0.0)(values, ROWS) is values


def test_the_gradient_passes_where_the_value_did():
    values = torch.ones(2, 32, 64, requires_grad=True)
    output = site()(values, ROWS)
    output.sum().backward()
    assert torch.equal(values.grad, output.detach())


@pytest.mark.parametrize(
    ("axes", "grid"),
    [((None, "y"), Decomposition(y=4)), (("x", None, None), Decomposition(x=2, y=2))],
    ids=str,
)
def test_a_rank_makes_its_slice_of_the_mask(axes, grid):
    shape = (8, 12) if len(axes) == 2 else (8, 6, 6)
    whole = kept(site(shape=shape, probability=0.5, axes=axes), 3, *shape)
    for rank in range(grid.ranks):
        part = site(shape=shape, probability=0.5, grid=grid, rank=rank, axes=axes)
        block = Sharding(shape, axes, flat=False).block(factory(World(4).transport(rank), grid).topology)
        mine = whole[(slice(None), *block)]
        assert torch.equal(kept(part, *mine.shape), mine)


def test_microbatches_are_pieces_of_the_batch():
    whole = kept(site(), 6, 32, 64)
    pieces = [kept(site(), 2, 32, 64, rows=ROWS._replace(first=ROWS.first + n)) for n in (0, 2, 4)]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize(
    "degrees",
    [
        {"microbatch": 4}, {"x": 4}, {"y": 2}, {"z": 2}, {"pipeline": 3}, {"data": 2, "pipeline": 2, "x": 2},
        {"x": 2, "y": 2, "z": 2},
    ],
    ids=str,
)  # fmt: skip
@MODELS
def test_training_with_dropout_does_not_depend_on_the_decomposition(model, degrees):
    assert_transparent(experiment(model), Decomposition(**degrees))


@MODELS
def test_dropout_changes_training(model):
    """The masks are not all ones, and not the same in both steps."""
    plain = serial(experiment(model.model_copy(update={"dropout": 0.0})))
    dropped = serial(experiment(model))
    assert all(one.loss != other.loss for one, other in zip(plain[0], dropped[0], strict=True))


@MODELS
def test_explicit_attention_is_the_fused_one(model):
    """A probability too small to drop anything takes the other way to the same numbers."""
    fused = trained(experiment(model.model_copy(update={"dropout": 0.0})), Decomposition(microbatch=2))
    explicit = trained(experiment(model.model_copy(update={"dropout": 1e-9})), Decomposition(microbatch=2))
    for one, other in zip(fused[0], explicit[0], strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-6)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=2e-6)
