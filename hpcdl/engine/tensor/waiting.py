"""What recomputation keeps, waiting in the memory of the host until backward comes for it.

Memory that a lane uses is free when the lane is done with it. A host that ran far ahead of the device would
ask for more and more of it, so it waits for each copy before it begins the next: it is one group ahead.
"""

from __future__ import annotations

import torch

from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.lane import Lane
from hpcdl.engine.tensor.recompute import Function, recomputed


class Waiting:
    """A tensor on its way to the host, there, or on its way back.

    Args:
        tensor: to be kept; whoever else holds it keeps it on the device too.
        before: what backward will come for next; it is brought back one ahead.
        host: where it waits.
        lane: what it travels on.
    """

    def __init__(self, tensor: torch.Tensor, before: Waiting | None, host: HostMemory, lane: Lane) -> None:
        self._before = before
        self._lane = lane
        self._device = tensor.device
        self._learns = tensor.requires_grad
        self._room: torch.Tensor | None = host.empty(tuple(tensor.shape), tensor.dtype)
        self._back: torch.Tensor | None = None
        lane.wait()
        lane.follow()
        with lane.running():
            self._room.copy_(tensor.detach(), non_blocking=True)
        lane.lend(tensor)

    def begin(self) -> None:
        """Begin to bring it back; the host's memory is free again when it came."""
        if self._room is not None:
            self._lane.follow()
            with self._lane.running():
                self._back = torch.empty_like(self._room, device=self._device)
                self._back.copy_(self._room, non_blocking=True)
            self._room = None

    def take(self) -> torch.Tensor:
        """It, on the device again; once."""
        self.begin()
        back, self._back = self._back, None
        assert back is not None, "what waits is taken once"  # noqa: S101
        self._lane.wait()
        self._lane.give(back)
        if self._before is not None:
            self._before.begin()
        return back.requires_grad_(self._learns)


class Vault:
    """Where the activations of one rank wait."""

    def __init__(self, host: HostMemory) -> None:
        self._host = host
        self._lane = Lane(host.device)

    def recomputed(
        self, function: Function, source: torch.Tensor, before: Waiting | None
    ) -> tuple[torch.Tensor, Waiting]:
        """``function(source)``, of which only ``source`` is kept, here.

        Args:
            function: of one tensor.
            source: on the device.
            before: what the call before answered; backward comes for it after this one.

        Returns:
            The result, and what waits.
        """
        waiting = Waiting(source, before, self._host, self._lane)
        sources = [source]  # only until forward has read it

        def run() -> torch.Tensor:
            return function(sources.pop() if sources else waiting.take())

        return recomputed(run), waiting
