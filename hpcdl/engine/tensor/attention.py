"""Causal self-attention with heads split over x, grouped queries and optional rotary positions.

The rows of the fused qkv matrix are ordered by key-value head: the queries that share the head,
then its key, then its value. A contiguous slice over x is then a set of whole groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hpcdl.engine.tensor.initial import STD, residual_std
from hpcdl.engine.tensor.linear import Linear, named
from hpcdl.engine.tensor.parameters import Factory
from hpcdl.spec.model import Model


def rotation(sequence: int, head_size: int, theta: float) -> torch.Tensor:
    """Cosines and sines of RoFormer (Su et al., arXiv 2104.09864), shape (2, L, D)."""
    frequency = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle_LD = torch.outer(torch.arange(sequence, dtype=torch.float64), frequency).repeat(1, 2)
    return torch.stack([angle_LD.cos(), angle_LD.sin()]).float()


def rotate(heads_BGLD: torch.Tensor, rotation_LD: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (d, d + D/2) by their position's angles."""
    cosine_LD, sine_LD = rotation_LD.to(heads_BGLD.dtype)
    left, right = heads_BGLD.chunk(2, dim=-1)
    turned_BGLD: torch.Tensor = heads_BGLD * cosine_LD + torch.cat([-right, left], dim=-1) * sine_LD
    return turned_BGLD


class Attention(nn.Module):
    """Letters: B sequences, L tokens, G key-value heads here, Q queries a group, D head size."""

    def __init__(self, factory: Factory, layer: str, model: Model) -> None:
        super().__init__()
        gpt = model.family == "gpt"
        qkv, out, _, _ = model.layer_matrices
        self.queries = model.heads // model.kv_heads
        self.head_size = model.head_size
        self.qkv = Linear(factory, named(layer, qkv), STD, transposed=False, bias=gpt)
        self.out = Linear(factory, named(layer, out), residual_std(model.layers), transposed=True, bias=gpt)
        self.rotation_LD: torch.Tensor | None = None
        if not gpt:
            angles = rotation(model.sequence, model.head_size, model.rope_theta)
            self.rotation_LD = angles.to(factory.numerics.device)

    def forward(self, input_BLH: torch.Tensor) -> torch.Tensor:
        """From hidden split over y, by heads split over x, to hidden split over y."""
        batch, length, _ = input_BLH.shape
        fused = self.qkv(input_BLH).view(batch, length, -1, self.queries + 2, self.head_size)
        query, key, value = fused.split([self.queries, 1, 1], dim=3)
        query, key, value = (part.flatten(2, 3).transpose(1, 2) for part in (query, key, value))
        if self.rotation_LD is not None:
            angles = self.rotation_LD[:, :length]
            query, key = rotate(query, angles), rotate(key, angles)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=self.queries > 1)
        output: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2, 3))
        return output
