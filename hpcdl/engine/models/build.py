"""Building the part of the model that one rank computes."""

from __future__ import annotations

import torch
from torch import nn

from hpcdl.engine.groups import Groups
from hpcdl.engine.models.recompute import group_size, run_layers
from hpcdl.engine.models.transformer import Head, Layer
from hpcdl.engine.tensor.dropout import Rows
from hpcdl.engine.tensor.embedding import Embedding
from hpcdl.engine.tensor.parameters import Factory, Held, Numerics
from hpcdl.engine.topology import Topology
from hpcdl.spec.model import Model
from hpcdl.spec.partition import stage_layers


class StageModel(nn.Module):
    """The layers of one pipeline stage, with the embedding on the first and the head on the last.

    ``held`` lists its parameters in the order of execution.
    """

    def __init__(self, factory: Factory, model: Model) -> None:
        super().__init__()
        topology, decomposition = factory.topology, factory.topology.decomposition
        layers = stage_layers(model, decomposition.pipeline, topology.stage)
        self.embedding = Embedding(factory, model) if topology.is_first else None
        self.layers = nn.ModuleList(Layer(factory, index, model) for index in layers)
        self.head = Head(factory, model, self.embedding) if topology.is_last else None
        self._group = group_size(decomposition)
        self.held: tuple[Held, ...] = tuple(factory.held)
        self.later = factory.later
        self.dtype = factory.numerics.dtype
        self.width = model.hidden // decomposition.y

    def forward(
        self, incoming: torch.Tensor, targets_BL: torch.Tensor | None = None, rows: Rows | None = None
    ) -> torch.Tensor:
        """From tokens or the stream of the stage before, to the stream for the next or the summed loss.

        Only the last stage looks at the targets. ``rows`` are those of the microbatch; None means that
        nothing is dropped, as in evaluation.
        """
        stream_BLH = incoming if self.embedding is None else self.embedding(incoming, rows)
        stream_BLH = run_layers(list(self.layers), stream_BLH, rows, self._group)
        if self.head is None:
            return stream_BLH
        loss: torch.Tensor = self.head(stream_BLH, targets_BL)
        return loss


def build_stage(model: Model, topology: Topology, groups: Groups, numerics: Numerics) -> StageModel:
    """This rank's stage of ``model``, with its initial values."""
    return StageModel(Factory(topology, groups, numerics), model)
