"""The decoder-only transformer: what one layer and the two ends compute.

The residual stream has its hidden width split over y, is replicated over x, and holds the
sequences of this rank's share of the batch.
"""

from __future__ import annotations

import torch
from torch import nn

from hpcdl.engine.tensor.attention import Attention
from hpcdl.engine.tensor.dropout import Rows, stream_dropout
from hpcdl.engine.tensor.embedding import TOKENS, Embedding
from hpcdl.engine.tensor.initial import STD
from hpcdl.engine.tensor.linear import matrix_layout, product
from hpcdl.engine.tensor.loss import cross_entropy
from hpcdl.engine.tensor.mlp import Mlp
from hpcdl.engine.tensor.norm import Norm
from hpcdl.engine.tensor.parameters import Factory
from hpcdl.spec.model import Model


class Layer(nn.Module):
    """Norm, attention, norm, MLP, each pair added to the residual stream after dropout."""

    def __init__(self, factory: Factory, index: int, model: Model) -> None:
        super().__init__()
        name, centred = f"layers.{index}", model.family == "gpt"
        self.attention_norm = Norm(factory, f"{name}.attention.norm", model.hidden, centred=centred)
        self.attention = Attention(factory, name, model)
        self.attention_dropout = stream_dropout(factory, f"{name}.attention", model)
        self.mlp_norm = Norm(factory, f"{name}.mlp.norm", model.hidden, centred=centred)
        self.mlp = Mlp(factory, name, model)
        self.mlp_dropout = stream_dropout(factory, f"{name}.mlp", model)

    def forward(self, stream_BLH: torch.Tensor, rows: Rows | None = None) -> torch.Tensor:
        """The residual stream after this layer; without ``rows`` nothing is dropped."""
        attended_BLH = self.attention(self.attention_norm(stream_BLH), rows)
        stream_BLH = stream_BLH + self.attention_dropout(attended_BLH, rows)
        return stream_BLH + self.mlp_dropout(self.mlp(self.mlp_norm(stream_BLH)), rows)


class Head(nn.Module):
    """Final norm, LM head and loss.

    Args:
        factory: makes this rank's parts.
        model: the shape.
        embedding: of this stage, if it has one and the head is tied to it. A tied head on another
            stage than the embedding makes the same weight again: it has the same name and seed.
    """

    def __init__(self, factory: Factory, model: Model, embedding: Embedding | None) -> None:
        super().__init__()
        shape = (model.vocab, model.hidden)
        self.norm = Norm(factory, "head.norm", model.hidden, centred=model.family == "gpt")
        if model.tied and embedding is not None:
            self.weight = embedding.weight
        else:
            name = TOKENS if model.tied else "head.weight"
            self.weight = factory.matrix(name, shape, ("x", "y"), STD, shared=model.tied)
        self.layout = matrix_layout(factory, self.weight, shape, transposed=False)

    def forward(self, stream_BLH: torch.Tensor, targets_BL: torch.Tensor) -> torch.Tensor:
        """The summed loss of all tokens."""
        logits_BLV = product(self.norm(stream_BLH), None, self.layout)
        return cross_entropy(logits_BLV, targets_BL, self.layout.spread)
