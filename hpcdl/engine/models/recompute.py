"""Running the layers of a stage, in groups that are recomputed in backward or with everything kept.

A group keeps the stream that enters it: one stream in ``every`` layers, and the activations of one group
while it is recomputed (AxoNN's checkpoint interval; Chen et al., arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hpcdl.engine.tensor.dropout import Rows
from hpcdl.engine.tensor.recompute import recomputed
from hpcdl.spec.decomposition import Decomposition


def group_size(decomposition: Decomposition) -> int:
    """How many layers are recomputed as one; 0 where layers are not recomputed whole."""
    return decomposition.recompute_every if decomposition.recompute == "full" else 0


def run_layers(
    layers: Sequence[nn.Module], stream_BLH: torch.Tensor, rows: Rows | None, every: int
) -> torch.Tensor:
    """The stream after all ``layers``, recomputed in groups of ``every``; 0 keeps all activations."""
    if not every:
        return _in_turn(layers, stream_BLH, rows)
    for first in range(0, len(layers), every):
        stream_BLH = recomputed(_in_turn, layers[first : first + every], stream_BLH, rows)
    return stream_BLH


def _in_turn(layers: Sequence[nn.Module], stream_BLH: torch.Tensor, rows: Rows | None) -> torch.Tensor:
    for layer in layers:
        stream_BLH = layer(stream_BLH, rows)
    return stream_BLH
