"""The groups of one rank by name, each with the transport that reaches it.

Only groups of more than one rank are made, names that mean the same ranks share one, and all ranks make
theirs in the same order. Not at first use: making one waits for its members, and two ranks may use
their groups in different orders, since operations do not block.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from hpcdl.engine.topology import LANES, Topology, memberships
from hpcdl.engine.transport.base import Done, Group, Handle, Reduction, Transport


@dataclass(frozen=True)
class Coming:
    """A tensor that a collective is still making."""

    tensor: torch.Tensor
    handle: Handle

    def wait(self) -> torch.Tensor:
        """The tensor, finished."""
        self.handle.wait()
        return self.tensor


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

    def gather(self, shard: torch.Tensor) -> Coming:
        """All flat shards, one after the other. A group of one answers the shard itself."""
        if self.group is None:
            return Coming(shard, Done())
        whole = shard.new_empty(shard.numel() * self.size)
        return Coming(whole, self.transport.all_gather(whole, shard, self.group))

    def scatter(self, whole: torch.Tensor) -> Coming:
        """This rank's shard of the sum of the flat ``whole``. A group of one answers ``whole``."""
        if self.group is None:
            return Coming(whole, Done())
        shard = whole.new_empty(whole.numel() // self.size)
        return Coming(shard, self.transport.reduce_scatter(shard, whole, self.group))

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
    weights: Peers  # z again, in a lane of its own: a gather ahead of need must not queue behind a scatter
    data: Peers
    batch: Peers  # data × z: those that hold the same stage and read different sequences
    team: Peers  # x × y × z: those that compute one stage of one replica together, where they must agree
    ends: Peers  # the first and the last stage, where they share a tied embedding
    world: Peers

    @property
    def made(self) -> int:
        """How many different groups these names stand for."""
        every = {one.name: getattr(self, one.name) for one in fields(self)}
        return len(
            {(peers.ranks, LANES.get(name)) for name, peers in every.items() if peers.group is not None}
        )


def make_groups(transport: Transport, topology: Topology, *, tied: bool) -> Groups:
    """Make the groups of one rank; called by all ranks at the same point.

    Args:
        transport: reaches the ranks.
        topology: says who they are.
        tied: whether the LM head shares the embedding, so that the pipeline's ends must talk.
    """

    def peers(ranks: tuple[int, ...], lane: str = "") -> Peers:
        return Peers(transport, ranks, transport.group(ranks, lane) if len(ranks) > 1 else None)

    groups = Groups(
        **{
            name: peers(ranks, LANES.get(name, ""))
            for name, ranks in memberships(topology, tied=tied).items()
        },
    )
    pipeline = topology.decomposition.pipeline
    transport.connect(sorted({topology.previous, topology.next}) if pipeline > 1 else ())
    return groups
