"""Which of two memories on one machine a tensor lies in, and how many bytes lay on the device at most."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpcdl.engine.host_memory import HostMemory

FRESH = {"empty_like", "new_empty"}  # room that is made wherever it is wanted


class Sides(TorchDispatchMode):
    """Knows of every operator which memories it reads.

    What is made of tensors of the host alone lies there too. Scalars, and fp64, which only norms are in, go
    where they are wanted.

    Args:
        host: everything else lies on the device.
    """

    def __init__(self, host: HostMemory) -> None:
        super().__init__()
        self.host = host
        self.there: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()  # besides what ``host`` holds

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [one for one in leaves((args, kwargs)) if one.dim() and one.dtype != torch.float64]
        sides = {self.on_host(one) for one in tensors}
        name = function.overloadpacket.__name__
        self.reads(name, sides)
        result = function(*args, **(kwargs or {}))
        if sides == {True} and name not in FRESH:
            made = (one for one in leaves(result) if not self.host.holds(one))
            self.there.update(one.untyped_storage() for one in made)
        self.made(leaves(result), sides)
        return result

    def on_host(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` lies there."""
        return self.host.holds(tensor) or tensor.untyped_storage() in self.there

    def reads(self, name: str, sides: set[bool]) -> None:
        """Called before an operator, with which of host (True) and device (False) it reads."""

    def made(self, tensors: list[torch.Tensor], sides: set[bool]) -> None:
        """Called after it, with what it made."""


class Peak(Sides):
    """The most bytes that lay on the device at once, of all that was made meanwhile.

    That includes what autograd keeps and what lives for one operator only, which a garbage collector never
    sees, but not what an operator needs within itself.
    """

    def __init__(self) -> None:
        super().__init__(HostMemory(torch.device("cpu")))
        self.most = 0
        self._live: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def begin(self, host: HostMemory) -> None:
        """Forget the peaks so far; ``host`` holds what does not lie on the device."""
        self.host, self.most = host, 0

    def made(self, tensors: list[torch.Tensor], sides: set[bool]) -> None:
        """Count, but not yet what is made of nothing: whose it is shows when it is filled."""
        self._live.update(one.untyped_storage() for one in tensors)
        if sides:
            self.most = max(self.most, _bytes(self._live) - self.host.held - _bytes(self.there))


def leaves(tree: Any) -> list[torch.Tensor]:
    """All tensors in ``tree``."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _bytes(storages: Iterable[torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages)
