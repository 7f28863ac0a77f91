"""Clipping by the global norm when every rank holds a part of the parameters."""

from __future__ import annotations

import torch

from hpcdl.engine.optim.bucket import Weighed


def squared_norm(weighed: Weighed) -> torch.Tensor:
    """This rank's share of a squared gradient norm, a scalar in fp64.

    An element that several ranks hold is counted by each with weight 1/replicas, so the sum over
    the world counts every element once.
    """
    if not weighed.gradients:
        return weighed.weights.sum()
    norms = torch.stack(torch._foreach_norm(weighed.gradients, 2, torch.float32))  # noqa: SLF001 - as torch's own clip
    return (norms.double().square() * weighed.weights).sum()


def scale(norm: float, limit: float) -> float:
    """What gradients are multiplied with so that their norm is at most ``limit`` (0: no limit)."""
    return min(1.0, limit / (norm + 1e-6)) if limit else 1.0
