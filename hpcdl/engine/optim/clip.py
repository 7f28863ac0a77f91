"""Clipping by the global norm when every rank holds a part of the parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpcdl.engine.optim.adamw import Slot


def squared_norm(slots: Sequence[Slot]) -> torch.Tensor:
    """This rank's share of the squared gradient norm, a scalar in fp64.

    An element that several ranks hold is counted by each with weight 1/replicas, so the sum over
    the world counts every element once.
    """
    norms = torch.stack(torch._foreach_norm([slot.gradient for slot in slots]))  # noqa: SLF001 - as torch's own clip
    weights = torch.tensor([1.0 / slot.replicas for slot in slots], dtype=torch.float64, device=norms.device)
    return (norms.double().square() * weights).sum()


def scale(norm: float, limit: float) -> float:
    """What gradients are multiplied with so that their norm is at most ``limit`` (0: no limit)."""
    return min(1.0, limit / (norm + 1e-6)) if limit else 1.0
