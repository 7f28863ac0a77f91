"""The groups of one rank by name, each with the transport that reaches it.

Only groups of more than one rank are made, and all ranks make theirs in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.base import Done, Group, Handle, Reduction, Transport


@dataclass(frozen=True)
class Peers:
    """This rank among the ranks of one group; a group of one has nothing to say to anybody."""

    transport: Transport
    ranks: tuple[int, ...]
    group: Group | None

    @property
    def size(self) -> int:
        """How many ranks."""
        return len(self.ranks)

    @property
    def index(self) -> int:
        """The position of this rank in the group."""
        return self.ranks.index(self.transport.rank)

    def all_reduce(self, tensor: torch.Tensor, reduction: Reduction = Reduction.SUM) -> Handle:
        """Reduce the contiguous ``tensor`` in place."""
        if self.group is None:
            return Done()
        return self.transport.all_reduce(tensor, self.group, reduction)

    def gathered(self, shard: torch.Tensor) -> torch.Tensor:
        """All flat shards, one after the other; blocks. A group of one answers the shard itself."""
        if self.group is None:
            return shard
        whole = shard.new_empty(shard.numel() * self.size)
        self.transport.all_gather(whole, shard, self.group).wait()
        return whole

    def scattered(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's shard of the sum of the flat ``whole``; blocks. A group of one answers ``whole``."""
        if self.group is None:
            return whole
        shard = whole.new_empty(whole.numel() // self.size)
        self.transport.reduce_scatter(shard, whole, self.group).wait()
        return shard

    def all_gather(self, whole: torch.Tensor, shard: torch.Tensor) -> Handle:
        """Fill the flat ``whole`` with every rank's flat ``shard``; the two share no memory."""
        if self.group is None:
            whole.copy_(shard)
            return Done()
        return self.transport.all_gather(whole, shard, self.group)

    def reduce_scatter(self, shard: torch.Tensor, whole: torch.Tensor) -> Handle:
        """Sum the flat ``whole`` and keep this rank's part in ``shard``; the two share no memory."""
        if self.group is None:
            shard.copy_(whole)
            return Done()
        return self.transport.reduce_scatter(shard, whole, self.group)

    def agree(self, number: int, device: torch.device) -> int:
        """The ``number`` of the group's first rank, on all of them; blocks."""
        if self.group is None:
            return number
        message = torch.tensor([number], dtype=torch.int32, device=device)
        self.transport.broadcast(message, self.group).wait()
        return int(message.item())


@dataclass(frozen=True)
class Groups:
    """Every group a rank belongs to."""

    x: Peers
    y: Peers
    z: Peers
    data: Peers
    batch: Peers  # data × z: those that hold the same stage and read different sequences
    team: Peers  # x × y × z: those that compute one stage of one replica together
    ends: Peers  # the first and the last stage, where they share a tied embedding
    world: Peers


def make_groups(transport: Transport, topology: Topology, *, tied: bool) -> Groups:
    """Make the groups of one rank; called by all ranks at the same point.

    Args:
        transport: reaches the ranks.
        topology: says who they are.
        tied: whether the LM head shares the embedding, so that the pipeline's ends must talk.
    """

    def peers(ranks: tuple[int, ...]) -> Peers:
        return Peers(transport, ranks, transport.group(ranks) if len(ranks) > 1 else None)

    at_end = tied and (topology.is_first or topology.is_last)
    return Groups(
        x=peers(topology.group("x")),
        y=peers(topology.group("y")),
        z=peers(topology.group("z")),
        data=peers(topology.group("data")),
        batch=peers(topology.group("data", "z")),
        team=peers(topology.team),
        ends=peers(topology.ends if at_end else (topology.rank,)),
        world=peers(tuple(range(topology.decomposition.ranks))),
    )
