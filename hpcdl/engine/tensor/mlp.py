"""The two MLPs: GELU for gpt, SwiGLU for llama; the inner width split over x."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hpcdl.engine.tensor.initial import STD, residual_std
from hpcdl.engine.tensor.linear import Linear, named
from hpcdl.engine.tensor.parameters import Factory
from hpcdl.engine.tensor.recompute import remade
from hpcdl.spec.model import Model


class Mlp(nn.Module):
    """Up, activation, down.

    SwiGLU's up matrix holds gate and up rows in turn, so any contiguous slice over x is a set of
    whole pairs. Recomputed selectively, only up's output is kept of what lies between up and down.
    """

    def __init__(self, factory: Factory, layer: str, model: Model) -> None:
        super().__init__()
        self._selective = factory.topology.decomposition.recompute == "selective"
        self.gated = model.family == "llama"
        _, _, up, down = model.layer_matrices
        narrow = residual_std(model.layers)
        self.up = Linear(factory, named(layer, up), STD, transposed=False, bias=not self.gated)
        self.down = Linear(factory, named(layer, down), narrow, transposed=True, bias=not self.gated)

    def forward(self, input_BLH: torch.Tensor) -> torch.Tensor:
        """From hidden split over y, by ffn split over x, to hidden split over y."""
        inner_BLF = self.up(input_BLH)
        if self._selective:
            return remade(self._activated, inner_BLF, self.down)
        output: torch.Tensor = self.down(self._activated(inner_BLF))
        return output

    def _activated(self, inner_BLF: torch.Tensor) -> torch.Tensor:
        if not self.gated:
            return F.gelu(inner_BLF, approximate="tanh")
        gate_BLF, up_BLF = torch.unflatten(inner_BLF, -1, (-1, 2)).unbind(-1)
        return F.silu(gate_BLF) * up_BLF
