"""LayerNorm and RMSNorm over a hidden width that is split over y.

The moments are those of the full width: normalising each shard by its own would be another
function than the serial model's. Letters: H hidden here, h the full width, x̂ the normalised input,
g = dO·w. With means over the full width,

    dI = (g - mean(g) - x̂·mean(g·x̂)) / σ          and without mean(g) for RMSNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hpcdl.engine.groups import Peers
from hpcdl.engine.tensor.parameters import Factory

EPSILON = 1e-5


@dataclass(frozen=True)
class _Width:
    peers: Peers
    full: int
    centred: bool


def _mean(columns: torch.Tensor, width: _Width) -> torch.Tensor:
    """Means over the full width of sums over this rank's part."""
    columns = columns.contiguous()
    width.peers.all_reduce(columns).wait()
    return columns / width.full


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_H: torch.Tensor, width: _Width) -> torch.Tensor:
        wide_H = input_H.float()
        # Two sums, one after the other: E[x²] - E[x]² would lose digits where the mean is large.
        if width.centred:
            wide_H = wide_H - _mean(wide_H.sum(-1, keepdim=True), width)
        variance = _mean(wide_H.square().sum(-1, keepdim=True), width)
        scale = torch.rsqrt(variance + EPSILON)
        normal_H = (wide_H * scale).to(input_H.dtype)
        ctx.save_for_backward(normal_H, scale)
        ctx.width = width
        return normal_H

    @staticmethod
    def backward(ctx: Any, grad_H: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        normal_H, scale = ctx.saved_tensors
        wide_H, normal_H = grad_H.float(), normal_H.float()
        sums = torch.stack([(wide_H * normal_H).sum(-1), wide_H.sum(-1)])
        along, level = _mean(sums, ctx.width).unsqueeze(-1)
        input_grad_H = wide_H - normal_H * along
        if ctx.width.centred:
            input_grad_H -= level
        return (input_grad_H * scale).to(grad_H.dtype), None


class Norm(nn.Module):
    """LayerNorm (``centred``, with a bias) or RMSNorm of the residual stream."""

    def __init__(self, factory: Factory, name: str, hidden: int, *, centred: bool) -> None:
        super().__init__()
        self._width = _Width(factory.groups.y, hidden, centred)
        self.weight = factory.vector(f"{name}.weight", hidden, "y", 1.0)
        self.bias = factory.vector(f"{name}.bias", hidden, "y", 0.0) if centred else None

    def forward(self, input_BLH: torch.Tensor) -> torch.Tensor:
        """The same split as the input."""
        if self._width.peers.size == 1:
            return self._whole(input_BLH)
        normal_BLH: torch.Tensor = _Normalise.apply(input_BLH, self._width)  # type: ignore[no-untyped-call]
        scaled_BLH = normal_BLH * self.weight
        return scaled_BLH if self.bias is None else scaled_BLH + self.bias

    def _whole(self, input_BLH: torch.Tensor) -> torch.Tensor:
        """The same by torch's own kernels, where this rank holds the full width."""
        shape = (self._width.full,)
        if self._width.centred:
            return F.layer_norm(input_BLH, shape, self.weight, self.bias, EPSILON)
        return F.rms_norm(input_BLH, shape, self.weight, EPSILON)
