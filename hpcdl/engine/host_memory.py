"""Memory of the host, as room for what a device need not hold all the time.

Next to a GPU it is page-locked, so that copies run beside computation. On a machine without one it is memory
like any other, but still memory of its own: whoever computes with what lies there must bring it over first.
"""

from __future__ import annotations

import weakref

import torch

from hpcdl.engine.log import say
from hpcdl.units import format_bytes


class HostMemory:
    """What one rank keeps in the memory of its host.

    Args:
        device: where the rank computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._page_locked = device.type == "cuda"
        self._storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    @property
    def held(self) -> int:
        """Bytes that are in use."""
        return sum(storage.nbytes() for storage in self._storages)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` lies here."""
        return tensor.untyped_storage() in self._storages

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Room for a tensor, not filled in.

        Page-locked memory is limited on many machines. Where there is no more of it, what is given is not
        page-locked, and a warning says what that costs.
        """
        room = self._locked(shape, dtype) if self._page_locked else None
        if room is None:
            room = torch.empty(shape, dtype=dtype)
        self._storages.add(room.untyped_storage())
        return room

    def copy(self, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The values of ``tensor``, here."""
        return self.empty(tuple(tensor.shape), dtype or tensor.dtype).copy_(tensor)

    def zeros(self, *shape: int) -> torch.Tensor:
        """Zeros in fp32."""
        return self.empty(shape, torch.float32).zero_()

    def settle(self) -> None:
        """Return when all copies are done that the device's current stream was given or waits for."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _locked(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        try:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        except RuntimeError as error:
            self._page_locked = False
            size = format_bytes(dtype.itemsize * torch.Size(shape).numel())
            reason = str(error).splitlines()[0]
            say(
                f"warning: the system gives no more page-locked memory ({size} asked, "
                f"{format_bytes(self.held)} held: {reason}); copies to and from the device will be slower "
                "and will not run beside computation. Raise the limit of locked memory (ulimit -l, or the "
                "site's job settings)"
            )
            return None
