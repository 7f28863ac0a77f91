"""Computing again in backward what forward did not keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

Function = Callable[[torch.Tensor], torch.Tensor]


def recomputed(function: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
    """``function(*args)``, of which only the arguments are kept."""
    # Dropout is a function of its place, so there is no generator state to keep.
    output: torch.Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return output


def remade(make: Function, source: torch.Tensor, use: Function) -> torch.Tensor:
    """``use(make(source))``, of which only ``source`` is kept.

    ``recomputed(make, source)`` alone would save nothing: what it makes is what ``use`` keeps. Here ``use``
    keeps how to make it.
    """
    made = recomputed(make, source)
    storage = made.untyped_storage().data_ptr()

    def pack(saved: torch.Tensor) -> torch.Tensor | torch.Size:
        return saved.shape if saved.untyped_storage().data_ptr() == storage else saved

    def unpack(packed: torch.Tensor | torch.Size) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        with torch.no_grad():
            return make(source).view(packed)

    with saved_tensors_hooks(pack, unpack):
        return use(made)
