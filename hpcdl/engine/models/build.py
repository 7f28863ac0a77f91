"""Building the part of the model that one rank computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hpcdl.engine.groups import Groups
from hpcdl.engine.models.own import OwnModel
from hpcdl.engine.models.recompute import Runner
from hpcdl.engine.models.transformer import Head, Layer
from hpcdl.engine.program import load_program
from hpcdl.engine.tensor.dropout import Rows
from hpcdl.engine.tensor.embedding import Embedding
from hpcdl.engine.tensor.parameters import Factory, Held, Numerics
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.packet import Field, Signature
from hpcdl.spec.entry import EntryModel
from hpcdl.spec.model import Model
from hpcdl.spec.partition import stage_layers


class Chunk(nn.Module):
    """The layers of one virtual stage, with the embedding on the first and the head on the last.

    Args:
        factory: makes this rank's parts.
        model: the shape of the whole.
        chunk: which of this rank's virtual stages.
    """

    def __init__(self, factory: Factory, model: Model, chunk: int) -> None:
        super().__init__()
        topology, decomposition = factory.topology, factory.topology.decomposition
        stages = decomposition.pipeline * decomposition.interleave
        stage = chunk * decomposition.pipeline + topology.stage
        self.embedding = Embedding(factory, model) if stage == 0 else None
        self.layers = nn.ModuleList(
            Layer(factory, index, model) for index in stage_layers(model, stages, stage)
        )
        self.head = Head(factory, model, self.embedding) if stage == stages - 1 else None
        self._runner = Runner(decomposition, factory.numerics.host)

    def forward(
        self, incoming: torch.Tensor, targets_BL: torch.Tensor | None = None, rows: Rows | None = None
    ) -> torch.Tensor:
        """From tokens or the stream of the stage before, to the stream for the next or the summed loss.

        Only the last stage looks at the targets. ``rows`` are those of the microbatch; None means that
        nothing is dropped, as in evaluation.
        """
        stream_BLH = incoming if self.embedding is None else self.embedding(incoming, rows)
        stream_BLH = self._runner.run(list(self.layers), stream_BLH, rows)
        if self.head is None:
            return stream_BLH
        loss: torch.Tensor = self.head(stream_BLH, targets_BL)
        return loss


class StageModel(nn.Module):
    """What one rank of a pipeline computes: its chunks, which are virtual stages, in their order.

    ``held`` lists its parameters in the order of execution.
    """

    def __init__(self, factory: Factory, model: Model) -> None:
        super().__init__()
        decomposition, numerics = factory.topology.decomposition, factory.numerics
        self.chunks = nn.ModuleList(Chunk(factory, model, chunk) for chunk in range(decomposition.interleave))
        self.held: tuple[Held, ...] = tuple(factory.held)
        self.later = factory.later
        self.device = numerics.device
        width = model.hidden // decomposition.y
        stream: Signature = (Field((model.sequence, width), numerics.dtype),)
        self.signatures: Sequence[Signature] = (stream,) * (decomposition.pipeline * decomposition.interleave)


def build_stage(
    model: Model | EntryModel, topology: Topology, groups: Groups, numerics: Numerics
) -> StageModel | OwnModel:
    """This rank's stage of ``model``, with its initial values."""
    if isinstance(model, EntryModel):
        return OwnModel(load_program(model), topology, groups, numerics)
    return StageModel(Factory(topology, groups, numerics), model)
