"""The optimizer is torch's, over fp32 masters; clipping counts every element once."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.optim.adamw import AdamW, Slot
from hpcdl.engine.optim.clip import scale, squared_norm
from hpcdl.engine.optim.schedule import learning_rate
from hpcdl.errors import EngineError
from hpcdl.spec.training import Optimizer

SETTINGS = Optimizer(lr=1e-2, weight_decay=0.1)


def slots_of(shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        Slot(
            f"p{i}",
            torch.randn(shape, generator=generator).to(dtype),
            torch.zeros(shape),
            1,
            decay=len(shape) > 1,
        )
        for i, shape in enumerate(shapes)
    ]


def test_adamw_equals_torch_over_ten_steps():
    slots = slots_of([(3, 4), (5,)])
    reference = [slot.parameter.clone().requires_grad_() for slot in slots]
    groups = [
        {"params": reference[:1], "weight_decay": 0.1},
        {"params": reference[1:], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    ours = AdamW(slots, SETTINGS)
    for step in range(10):
        for slot, parameter in zip(slots, reference, strict=True):
            slot.gradient.copy_(torch.sin(parameter.detach() * (step + 1)))
            parameter.grad = slot.gradient.clone() * 0.5
        ours.step(1e-2, 0.5)
        theirs.step()
        for slot, parameter in zip(slots, reference, strict=True):
            torch.testing.assert_close(slot.parameter, parameter.detach(), rtol=0, atol=1e-7)


def test_adamw_masters_keep_what_bf16_rounds_away():
    (slot,) = slots_of([(64,)], torch.bfloat16)
    before = slot.parameter.clone()
    optimizer = AdamW([slot], Optimizer(lr=1e-5))
    for _ in range(200):
        slot.gradient.fill_(1.0)
        optimizer.step(1e-5, 1.0)
    moved = (before - slot.parameter).float().mean()
    assert moved == pytest.approx(200e-5, rel=0.2)


def test_adamw_goes_on_from_its_state_bitwise():
    def train(optimizer, slots, steps):
        for step in steps:
            for slot in slots:
                slot.gradient.copy_(torch.cos(slot.parameter * step))
            optimizer.step(1e-2, 1.0)

    whole, halves, fresh = (slots_of([(4, 4), (4,)]) for _ in range(3))
    train(AdamW(whole, SETTINGS), whole, range(6))
    first = AdamW(halves, SETTINGS)
    train(first, halves, range(3))
    second = AdamW(fresh, SETTINGS)
    second.load(first.state())
    train(second, fresh, range(3, 6))
    assert all(torch.equal(a.parameter, b.parameter) for a, b in zip(whole, fresh, strict=True))


def test_adamw_state_goes_through_a_file(tmp_path):
    """As tensors only, so that loading a checkpoint can never run code."""
    (slot,) = slots_of([(3,)], torch.bfloat16)
    optimizer = AdamW([slot], SETTINGS)
    optimizer.step(1e-2, 1.0)
    torch.save(optimizer.state(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert {name: value.dtype for name, value in state["p0"].items()} == dict.fromkeys(
        ("master", "step", "exp_avg", "exp_avg_sq"), torch.float32
    )


def test_adamw_does_not_keep_hold_of_what_it_loaded():
    (slot,) = slots_of([(3,)])
    optimizer = AdamW([slot], SETTINGS)
    slot.gradient.fill_(1.0)
    optimizer.step(1e-2, 1.0)
    state = {"p0": {name: value.clone() for name, value in optimizer.state()["p0"].items()}}
    before = {name: value.clone() for name, value in state["p0"].items()}
    optimizer.load(state)
    optimizer.step(1e-2, 1.0)
    assert all(torch.equal(state["p0"][name], value) for name, value in before.items())


@pytest.mark.parametrize("state", [{}, {"p0": {"master": torch.zeros(4)}}])
def test_adamw_refuses_the_state_of_another_model(state):
    with pytest.raises(EngineError, match=r"for p0, which has shape \(3,\)"):
        AdamW(slots_of([(3,)]), SETTINGS).load(state)


@given(shards=st.integers(1, 6), width=st.integers(1, 5))
def test_squared_norm_summed_over_ranks_is_that_of_the_whole(shards, width):
    """A matrix is cut over the ranks, a bias is held by all of them."""
    matrix, bias = torch.arange(1.0, shards * width + 1), torch.tensor([2.0, 3.0])
    shares = [
        squared_norm([Slot("m", part, part, 1, decay=True), Slot("b", bias, bias, shards, decay=False)])
        for part in matrix.split(width)
    ]
    assert sum(share.item() for share in shares) == pytest.approx(
        float(matrix.square().sum() + bias.square().sum())
    )


def test_squared_norm_counts_a_replicated_element_once():
    gradient = torch.tensor([3.0, 4.0])
    replicated = Slot("r", gradient, gradient, 4, decay=False)
    own = Slot("o", gradient, gradient, 1, decay=False)
    assert squared_norm([replicated, own]).item() == pytest.approx(25 / 4 + 25)


@given(norm=st.floats(0, 1e6), limit=st.floats(0.01, 1e3))
def test_scale_never_exceeds_the_limit(norm, limit):
    assert norm * scale(norm, limit) <= limit * (1 + 1e-6)
    assert scale(norm, 0.0) == 1.0


def test_learning_rate_rises_then_falls_to_its_floor():
    settings = Optimizer(lr=1.0, warmup=10, min_lr_ratio=0.1)
    rates = [learning_rate(settings, step, 110) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert rates[59] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[-1] == pytest.approx(0.1)


def test_learning_rate_of_a_run_that_is_all_warm_up():
    assert learning_rate(Optimizer(lr=1.0, warmup=5), 5, 5) == 1.0
