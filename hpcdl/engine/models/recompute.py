"""Running the layers of a stage, in groups that are recomputed in backward or with everything kept.

A group keeps the stream that enters it: one stream in ``every`` layers, and the activations of one group
while it is recomputed (AxoNN's checkpoint interval; Chen et al., arXiv 1604.06174). With a vault that stream
waits in the memory of the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.tensor.dropout import Rows
from hpcdl.engine.tensor.recompute import Function, recomputed
from hpcdl.engine.tensor.waiting import Vault, Waiting
from hpcdl.spec.decomposition import Decomposition


class Runner:
    """How the layers of a virtual stage are run.

    Args:
        decomposition: what is recomputed, and what waits on the host.
        host: of this rank.
    """

    def __init__(self, decomposition: Decomposition, host: HostMemory) -> None:
        self._every = decomposition.recompute_every if decomposition.recompute == "full" else 0
        self._vault = Vault(host) if decomposition.offload_activations else None

    def run(self, layers: Sequence[nn.Module], stream_BLH: torch.Tensor, rows: Rows | None) -> torch.Tensor:
        """The stream after all ``layers``."""
        if not self._every:
            return _in_turn(layers, rows, stream_BLH)
        groups = [
            partial(_in_turn, layers[first : first + self._every], rows)
            for first in range(0, len(layers), self._every)
        ]
        if self._vault is not None and torch.is_grad_enabled():
            return _through(self._vault, groups, stream_BLH)
        for group in groups:
            stream_BLH = recomputed(group, stream_BLH)
        return stream_BLH


def _through(vault: Vault, groups: Sequence[Function], stream_BLH: torch.Tensor) -> torch.Tensor:
    waiting: Waiting | None = None
    for group in groups:
        stream_BLH, waiting = vault.recomputed(group, stream_BLH, waiting)
    return stream_BLH


def _in_turn(layers: Sequence[nn.Module], rows: Rows | None, stream_BLH: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        stream_BLH = layer(stream_BLH, rows)
    return stream_BLH
