"""The optimizer is torch's, over fp32 masters; clipping counts every element once; the loss scale adapts."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.optim.adamw import AdamW
from hpcdl.engine.optim.bucket import Bucket, Weighed
from hpcdl.engine.optim.clip import scale, squared_norm
from hpcdl.engine.optim.scaler import PATIENCE, Scaler
from hpcdl.engine.optim.schedule import learning_rate
from hpcdl.errors import EngineError
from hpcdl.spec.training import LossScale, Optimizer

SETTINGS = Optimizer(lr=1e-2, weight_decay=0.1)


def bucket_of(size, dtype=torch.float32, *, decay=True):
    parameter = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    master = parameter if dtype == torch.float32 else parameter.float()
    moments = torch.zeros_like(master), torch.zeros_like(master)
    return Bucket(parameter, torch.zeros(size), master, *moments, torch.zeros(()), decay=decay, runs=())


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("divisor", [None, 2.0])
def test_adamw_equals_torch_over_ten_steps(divisor, decay):
    bucket = bucket_of(12, decay=decay)
    reference = bucket.parameter.clone().requires_grad_()
    theirs = torch.optim.AdamW(
        [reference], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1 if decay else 0.0
    )
    ours = AdamW(SETTINGS)
    for step in range(10):
        bucket.gradient.copy_(torch.sin(reference.detach() * (step + 1)))
        reference.grad = bucket.gradient / (divisor or 1.0)
        ours.update(bucket, 1e-2, divisor)
        theirs.step()
        torch.testing.assert_close(bucket.parameter, reference.detach(), rtol=0, atol=1e-7)


def test_adamw_masters_keep_what_bf16_rounds_away():
    bucket = bucket_of(64, torch.bfloat16)
    before = bucket.master.clone()
    optimizer = AdamW(Optimizer(lr=1e-5))
    for _ in range(200):
        bucket.gradient.fill_(1.0)
        optimizer.update(bucket, 1e-5)
    assert (before - bucket.master).mean() == pytest.approx(200e-5, rel=0.02)
    assert torch.equal(bucket.parameter, bucket.master.bfloat16())


@given(shards=st.integers(1, 6), width=st.integers(1, 5))
def test_squared_norm_summed_over_ranks_is_that_of_the_whole(shards, width):
    """A matrix is cut over the ranks, a bias is held by all of them."""
    matrix, bias = torch.arange(1.0, shards * width + 1), torch.tensor([2.0, 3.0])
    weights = torch.tensor([1.0, 1 / shards], dtype=torch.float64)
    shares = [squared_norm(Weighed([part, bias], weights)) for part in matrix.split(width)]
    assert sum(share.item() for share in shares) == pytest.approx(
        float(matrix.square().sum() + bias.square().sum())
    )


def test_the_norm_of_nothing_is_zero():
    """A share may be all padding."""
    assert squared_norm(Weighed([], torch.zeros(0, dtype=torch.float64))).item() == 0


@given(norm=st.floats(0, 1e6), limit=st.floats(0.01, 1e3))
def test_scale_never_exceeds_the_limit(norm, limit):
    assert norm * scale(norm, limit) <= limit * (1 + 1e-6)
    assert scale(norm, 0.0) == 1.0


def test_the_loss_scale_halves_on_overflow_and_doubles_after_a_window():
    scaler = Scaler(LossScale(initial=8, smallest=1, largest=16, window=3))
    factors = []
    for step, clean in enumerate([1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]):
        scaler.clean() if clean else scaler.overflow(step)
        factors.append(scaler.factor)
    assert factors == [8, 8, 4, 4, 4, 8, 8, 8, 16, 16, 16, 16]


def test_the_loss_scale_goes_on_where_it_was():
    """Also in the middle of a window."""
    settings = LossScale(initial=8, window=3)
    first, second = Scaler(settings), Scaler(settings)
    first.overflow(1)
    first.clean()
    second.restore(first.counters())
    for _ in range(2):
        first.clean()
        second.clean()
    assert second.counters() == first.counters()
    assert second.factor == 8


def test_overflowing_for_ever_at_the_smallest_scale_ends_training():
    scaler = Scaler(LossScale(initial=2, smallest=1))
    scaler.overflow(0)
    for step in range(1, PATIENCE):
        scaler.overflow(step)
    with pytest.raises(
        EngineError, match=rf"{PATIENCE} steps in a row up to step {PATIENCE}.*smallest, 1"
    ) as caught:
        scaler.overflow(PATIENCE)
    assert "bf16" in caught.value.hint


def test_one_clean_step_at_the_smallest_scale_renews_the_patience():
    scaler = Scaler(LossScale(initial=1, smallest=1))
    for step in range(3 * PATIENCE):
        if step % PATIENCE:
            scaler.overflow(step)
        else:
            scaler.clean()
    assert scaler.factor == 1


def test_learning_rate_rises_then_falls_to_its_floor():
    settings = Optimizer(lr=1.0, warmup=10, min_lr_ratio=0.1)
    rates = [learning_rate(settings, step, 110) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert rates[59] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[-1] == pytest.approx(0.1)


def test_learning_rate_of_a_run_that_is_all_warm_up():
    assert learning_rate(Optimizer(lr=1.0, warmup=5), 5, 5) == 1.0
