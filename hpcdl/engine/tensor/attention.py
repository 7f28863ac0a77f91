"""Causal self-attention with heads split over x, grouped queries and optional rotary positions.

The rows of the fused qkv matrix are ordered by key-value head: the queries that share the head,
then its key, then its value. A contiguous slice over x is then a set of whole groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hpcdl.engine.tensor.dropout import Dropout, Rows
from hpcdl.engine.tensor.initial import STD, residual_std
from hpcdl.engine.tensor.linear import Linear, named
from hpcdl.engine.tensor.parameters import Factory
from hpcdl.engine.tensor.recompute import recomputed
from hpcdl.engine.tensor.sharding import Sharding
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
    """Letters: B sequences, L tokens, A heads here, in G groups of Q around a key-value head, D head size.

    Recomputed selectively (Korthikanti et al. 2022, arXiv 2205.05198), only the output of qkv is kept of what
    lies between qkv and out. Fused attention keeps no score square, so that saves its output and the turned
    copies of llama's queries and keys; with dropout, where the scores are explicit, it saves the squares.
    """

    def __init__(self, factory: Factory, layer: str, model: Model) -> None:
        super().__init__()
        gpt = model.family == "gpt"
        qkv, out, _, _ = model.layer_matrices
        self.queries = model.heads // model.kv_heads
        self.head_size = model.head_size
        self.qkv = Linear(factory, named(layer, qkv), STD, transposed=False, bias=gpt)
        self.out = Linear(factory, named(layer, out), residual_std(model.layers), transposed=True, bias=gpt)
        self.rotation_LD: torch.Tensor | None = None
        scores = Sharding((model.heads, model.sequence, model.sequence), ("x", None, None), flat=False)
        self.dropout = Dropout(factory, f"{layer}.attention.scores", scores, model.dropout)
        self._selective = factory.topology.decomposition.recompute == "selective"
        if not gpt:
            angles = rotation(model.sequence, model.head_size, model.rope_theta)
            self.rotation_LD = angles.to(factory.numerics.device)

    def forward(self, input_BLH: torch.Tensor, rows: Rows | None = None) -> torch.Tensor:
        """From hidden split over y, by heads split over x, to hidden split over y."""
        fused_BLF = self.qkv(input_BLH)
        if self._selective:
            mixed_BLF = recomputed(self._core, fused_BLF, rows)
        else:
            mixed_BLF = self._core(fused_BLF, rows)
        output: torch.Tensor = self.out(mixed_BLF)
        return output

    def _core(self, fused_BLF: torch.Tensor, rows: Rows | None) -> torch.Tensor:
        """From queries, keys and values to the values mixed by attention: all between qkv and out."""
        length = fused_BLF.shape[1]
        fused = torch.unflatten(fused_BLF, -1, (-1, self.queries + 2, self.head_size))
        query, key, value = torch.split(fused, [self.queries, 1, 1], dim=3)
        query, key, value = (part.flatten(2, 3).transpose(1, 2) for part in (query, key, value))
        if self.rotation_LD is not None:
            angles = self.rotation_LD[:, :length]
            query, key = rotate(query, angles), rotate(key, angles)
        if self.dropout.drops(rows):
            mixed = self._mixed(query, key, value, rows)
        else:
            grouped = self.queries > 1
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        return mixed.transpose(1, 2).flatten(2, 3)

    def _mixed(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Rows | None
    ) -> torch.Tensor:
        """Attention step by step: the fused one has a generator of its own, which knows no decomposition."""
        grouped_BGQLD = torch.unflatten(query, 1, (-1, self.queries)) * self.head_size**-0.5
        scores_BALL = (grouped_BGQLD @ key.unsqueeze(2).mT).flatten(1, 2).float()
        future_LL = torch.ones_like(scores_BALL[0, 0], dtype=torch.bool).triu(1)
        weights_BALL = scores_BALL.masked_fill(future_LL, -torch.inf).softmax(-1).to(value.dtype)
        kept_BGQLL = torch.unflatten(self.dropout(weights_BALL, rows), 1, (-1, self.queries))
        return (kept_BGQLL @ value.unsqueeze(2)).flatten(1, 2)
