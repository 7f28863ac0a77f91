"""Where MPI reads and writes: the tensors themselves, or copies of them in host memory.

MPI works on what it is given as soon as it is given, and knows nothing of streams: a tensor on a GPU must
be finished before it is handed over. An event waits for the work that this stream was given so far, no more.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Memory(Protocol):
    """What stands between tensors and MPI."""

    def outgoing(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values of ``tensor`` where MPI can read them, finished."""

    def incoming(self, tensor: torch.Tensor) -> torch.Tensor:
        """Room for the values of ``tensor`` where MPI can write them."""

    def back(self, tensor: torch.Tensor, room: torch.Tensor) -> None:
        """Bring what MPI wrote into ``room`` home to ``tensor``."""


class Direct:
    """MPI works on the tensors themselves: CPU tensors, or GPU tensors of a CUDA-aware MPI."""

    def outgoing(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor."""
        _finish(tensor.device)
        return tensor

    def incoming(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor: what wrote to it before must be done too."""
        _finish(tensor.device)
        return tensor

    def back(self, tensor: torch.Tensor, room: torch.Tensor) -> None:
        """It is home."""


class Staged:
    """MPI works on copies in host memory, page-locked if the tensors are on a GPU.

    Torch keeps a page-locked copy alive until the stream that reads it is done with it.
    """

    def outgoing(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy, finished."""
        room = self.incoming(tensor).copy_(tensor, non_blocking=True)
        _finish(tensor.device)
        return room

    def incoming(self, tensor: torch.Tensor) -> torch.Tensor:
        """Host memory of the same size."""
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)

    def back(self, tensor: torch.Tensor, room: torch.Tensor) -> None:
        """Copy, in the order of the current stream."""
        tensor.copy_(room, non_blocking=True)


def _finish(device: torch.device) -> None:
    """Wait for what the current stream of ``device`` was given so far."""
    if device.type == "cuda":
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        event.synchronize()
