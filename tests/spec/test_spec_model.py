from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hpcdl.spec.decomposition import Recompute
from hpcdl.spec.model import PRESETS, Model

# Llama: parameters of the released weights (Touvron et al. 2023; Grattafiori et al. 2024).
# GPT-3: the 174.6e9 that follows from Brown et al. 2020, table 2.1, with biases, norms and positions.
PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
}


@pytest.mark.parametrize(("preset", "parameters"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(preset, parameters):
    assert Model(preset=preset).parameters == parameters


def test_a_mixture_of_experts_has_the_parameters_of_the_released_weights():
    """Mixtral 8x7B, Jiang et al. 2024 (arXiv 2401.04088): 46.7B in all, 12.9B at work for a token."""
    shape = dict(family="llama", layers=32, hidden=4096, heads=32, kv_heads=8, ffn=14336, vocab=32000)
    model = Model(**shape, sequence=4096, experts=8, active_experts=2)
    assert model.parameters == 46_702_792_704
    matmuls = model.forward_flops - 32 * 4 * 4096**2 * 4096
    assert matmuls / (2 * 4096) == pytest.approx(12.9e9, rel=0.02)


def test_no_more_experts_work_than_there_are():
    with pytest.raises(ValidationError, match="active_experts 3 is more than experts 2"):
        Model(layers=2, hidden=64, heads=4, vocab=256, sequence=32, experts=2, active_experts=3)


def test_gpt3_has_174_6_billion_parameters():
    assert Model(preset="gpt3-175b").parameters == pytest.approx(174.6e9, rel=5e-4)


def test_gpt2_has_the_parameters_of_the_released_weights():
    assert Model(preset="gpt2").parameters == 124_439_808


@given(
    st.integers(1, 100), st.integers(1, 64), st.integers(1, 8), st.integers(2, 60000), st.integers(1, 9000)
)
def test_training_flops_are_the_formula_of_narayanan_2021(layers, head_size, heads, vocab, s):
    h = head_size * heads
    model = Model(layers=layers, hidden=h, heads=heads, vocab=vocab, sequence=s)
    formula = 72 * layers * s * h**2 * (1 + s / (6 * h) + vocab / (12 * layers * h))
    assert model.train_flops == pytest.approx(formula, rel=1e-12)
    recomputed = 96 * layers * s * h**2 * (1 + s / (6 * h) + vocab / (16 * layers * h))
    assert model.train_flops + model.recomputed_flops["full"] == pytest.approx(recomputed, rel=1e-12)


def test_selective_recomputation_adds_little_to_a_wide_model():
    """Scores and their product with the values: 4·s²·h of the 72·s·h²·(1 + s/(6h)) of a layer."""
    model = Model(preset="gpt3-175b")
    added = model.recomputed_flops["selective"] / model.train_flops
    assert added == pytest.approx(2048 / (18 * 12288) / (1 + 2048 / (6 * 12288)), rel=0.01)
    assert model.recomputed_flops.keys() == set(get_args(Recompute))


@pytest.mark.parametrize("preset", PRESETS)
def test_layers_and_ends_make_all_parameters(preset):
    model = Model(preset=preset)
    ends = model.embedding_parameters + model.head_parameters
    assert model.parameters == model.layers * model.layer_parameters + ends


def test_a_preset_can_be_overridden():
    assert Model(preset="llama2-7b", layers=2).layers == 2


def test_fewer_key_value_heads_shrink_only_qkv():
    many, few = (Model(preset="llama3-8b", kv_heads=kv) for kv in (32, 8))
    assert many.layer_parameters - few.layer_parameters == 2 * (32 - 8) * 128 * 4096


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 5}, "hidden 64 is not divisible by heads 5"),
        ({"kv_heads": 3}, "heads 4 is not divisible by kv_heads 3"),
        ({"preset": "gpt5"}, "there is no preset 'gpt5'"),
        ({"family": "llama", "hidden": 60, "heads": 4}, "must be even, not 15"),
        ({"layers": 0}, "greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"dropout": -0.1}, "greater than or equal to 0"),
        ({"depth": 3}, "Extra inputs"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_its_values(change, words):
    shape = {"layers": 2, "hidden": 64, "heads": 4, "vocab": 256, "sequence": 32, **change}
    with pytest.raises(ValidationError, match=words):
        Model(**shape)
