"""Gradients on their way to the memory of the host: one travels while the one before it is added there."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.lane import Lane

_Add = Callable[[torch.Tensor], None]


class Delivery:
    """Brings gradients over, in their order.

    Args:
        host: where to.
    """

    def __init__(self, host: HostMemory) -> None:
        self._host = host
        self._lane, self._other = Lane(host.device), Lane(host.device)
        self._coming: tuple[torch.Tensor, _Add] | None = None

    def bring(self, gradient: torch.Tensor, add: _Add) -> None:
        """Begin to bring ``gradient`` over; ``add`` gets it when the next one comes, or in ``settle``."""
        room = self._host.empty(tuple(gradient.shape), gradient.dtype)
        self._other.follow()
        with self._other.running():
            room.copy_(gradient, non_blocking=True)
        self._other.lend(gradient)
        self.settle()
        self._lane, self._other = self._other, self._lane
        self._coming = room, add

    def settle(self) -> None:
        """Return when all that was brought is added."""
        if self._coming is not None:
            (room, add), self._coming = self._coming, None
            self._lane.wait()
            add(room)
