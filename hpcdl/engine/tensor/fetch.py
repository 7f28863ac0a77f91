"""Weights that lie in the memory of the host between their uses, on their way to the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hpcdl.engine.groups import Coming, Peers
from hpcdl.engine.lane import Lane


@dataclass(frozen=True)
class _Arrival:
    """The handle of a weight that is fetched and then gathered."""

    lane: Lane
    coming: Coming

    def wait(self) -> None:
        tensor = self.coming.wait()
        self.lane.join()
        self.lane.give(tensor)


class Fetch:
    """Gathers as ``peers`` do, from shards on the host; none of what was fetched is kept.

    Args:
        peers: the ranks that hold the other shards, if there are any.
        device: where a weight is used.
    """

    def __init__(self, peers: Peers, device: torch.device) -> None:
        self._peers = peers
        self._device = device
        self._lane, self._other = Lane(device), Lane(device)

    def gather(self, shard: torch.Tensor) -> Coming:
        """All flat shards, one after the other, in memory of the device."""
        self._lane, self._other = self._other, self._lane
        # A host that runs ahead of the device would ask for room while all it asked for before is in use. A
        # fetch follows what was computed when it was asked for, so when it is done older weights are free.
        self._other.wait()
        self._lane.follow()
        with self._lane.running():
            here = torch.empty_like(shard, device=self._device, requires_grad=False)
            here.copy_(shard.detach(), non_blocking=True)
            coming = self._peers.gather(here)
        return Coming(coming.tensor, _Arrival(self._lane, coming))
