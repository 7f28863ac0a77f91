"""The clock of a CUDA device: moments on its compute stream, not on the host that runs ahead of it."""

from __future__ import annotations

import time
from typing import Any

import torch

from hpcdl.engine.timeline import Clock, HostClock


class CudaClock:
    """Marks are events on the current stream, so a wait is as long as the stream stood still for it.

    Events are only known relative to each other, so each ``settle`` waits for the device and ties one that
    has just happened to the host's clock; a span that began before the last ``settle`` is still in order.
    """

    def __init__(self) -> None:
        self._anchor, self._anchored = self.mark(), 0.0
        self.settle()

    def mark(self) -> Any:
        """An event that the device will reach after what was launched so far."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def settle(self) -> None:
        """Wait for the device."""
        self._anchor = self.mark()
        torch.cuda.synchronize()
        self._anchored = time.perf_counter()

    def seconds(self, mark: Any) -> float:
        """When the device came to ``mark``."""
        return self._anchored - float(mark.elapsed_time(self._anchor)) / 1000


def clock_of(device: torch.device) -> Clock:
    """The clock of what computes."""
    return CudaClock() if device.type == "cuda" else HostClock()
