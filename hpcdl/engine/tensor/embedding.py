"""Token and position embedding: the vocabulary split over x, the hidden width over y."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hpcdl.engine.tensor.dropout import Rows, stream_dropout
from hpcdl.engine.tensor.initial import STD
from hpcdl.engine.tensor.linear import Layout, matrix_layout
from hpcdl.engine.tensor.parameters import Factory
from hpcdl.spec.model import Model

TOKENS = "embedding.tokens"


class _Lookup(torch.autograd.Function):
    """Rows of a matrix whose rows are split over ``layout.spread`` and whose block is cut over z.

    A rank answers zeros for the tokens of others and the all-reduce fills them in. The result is
    replicated over x, so the backward of that all-reduce is the identity. Letters: B sequences,
    L tokens, H hidden here, S this rank's shard.
    """

    @staticmethod
    def forward(ctx: Any, tokens_BL: torch.Tensor, _: nn.Parameter, layout: Layout) -> torch.Tensor:
        weight_VH = layout.gathered()
        rows_BL = tokens_BL - layout.spread.index * layout.block[0]
        foreign_BL = (rows_BL < 0) | (rows_BL >= layout.block[0])
        rows_BL = rows_BL.masked_fill(foreign_BL, 0)
        output_BLH = weight_VH[rows_BL]
        if layout.spread.size > 1:
            output_BLH.masked_fill_(foreign_BL.unsqueeze(-1), 0)
            layout.spread.all_reduce(output_BLH).wait()
        ctx.save_for_backward(rows_BL, foreign_BL)
        ctx.layout = layout
        return output_BLH

    @staticmethod
    def backward(ctx: Any, grad_BLH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows_BL, foreign_BL = ctx.saved_tensors
        layout: Layout = ctx.layout
        own_BLH = grad_BLH.masked_fill(foreign_BL.unsqueeze(-1), 0)
        grad_VH = grad_BLH.new_zeros(layout.block)
        grad_VH.index_add_(0, rows_BL.view(-1), own_BLH.reshape(-1, layout.block[1]))
        layout.bring(grad_VH)
        return None, None, None


class Embedding(nn.Module):
    """Token embedding and, for gpt, learned positions; hidden split over y, replicated over x.

    ``weight`` and ``layout`` are what a tied LM head shares.
    """

    def __init__(self, factory: Factory, model: Model) -> None:
        super().__init__()
        shape = (model.vocab, model.hidden)
        self.weight = factory.matrix(TOKENS, shape, ("x", "y"), STD, shared=model.tied)
        self.layout = matrix_layout(factory, self.weight, shape, transposed=False)
        self.positions: nn.Parameter | None = None
        if model.family == "gpt":
            rows = (model.sequence, model.hidden)
            self.positions = factory.table("embedding.positions", rows, "y", STD)
        self.dropout = stream_dropout(factory, "embedding", model)

    def forward(self, tokens_BL: torch.Tensor, rows: Rows | None = None) -> torch.Tensor:
        """The residual stream: hidden split over y, replicated over x."""
        output_BLH: torch.Tensor = _Lookup.apply(tokens_BL, self.weight, self.layout)  # type: ignore[no-untyped-call]
        if self.positions is not None:
            output_BLH = output_BLH + self.positions[: tokens_BL.shape[1]]
        return self.dropout(output_BLH, rows)
