"""Work beside what a device computes: on a GPU a stream of its own, on a CPU nothing is beside anything."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class Lane:
    """One thing after the other, beside the current stream.

    On a CPU everything is done where it stands, which is one of the orders that a GPU may choose.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def running(self) -> AbstractContextManager[object]:
        """What is started within runs here."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def follow(self) -> None:
        """What is started here from now on runs after what the current stream was given so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def join(self) -> None:
        """What the current stream is given from now on runs after what was started here so far."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def wait(self) -> None:
        """Return when what was started here so far is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def give(self, tensor: torch.Tensor) -> None:
        """Keep the memory of ``tensor``, made here, until the current stream is done with it."""
        if self._stream is not None:
            tensor.record_stream(torch.cuda.current_stream(self._stream.device))

    def lend(self, tensor: torch.Tensor) -> None:
        """Keep the memory of ``tensor``, made elsewhere, until what was started here is done with it."""
        if self._stream is not None:
            tensor.record_stream(self._stream)
