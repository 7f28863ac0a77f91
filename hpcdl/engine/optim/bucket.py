"""What is updated at once, and what is reduced at once: tensors that are spans of the flat memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hpcdl.engine.buckets import Kind, Run
from hpcdl.engine.groups import Peers
from hpcdl.engine.sparse.kept import Kept
from hpcdl.engine.tensor.parameters import Held

KINDS = ("master", "exp_avg", "exp_avg_sq")
"""What must be kept of every element that is trained."""


@dataclass(frozen=True)
class Slot:
    """One parameter of this rank with its gradient: of the same shape, or flat and only what is kept."""

    held: Held
    gradient: torch.Tensor
    replicas: int  # ranks of the world that hold the same elements
    kept: Kept | None = None  # None: everything
    on_host: bool = False  # where the gradient lies

    def trained(self, gradient: torch.Tensor) -> torch.Tensor:
        """Of a gradient of the whole parameter, what is trained."""
        return gradient if self.kept is None else self.kept.compress(gradient)

    @property
    def name(self) -> str:
        """The parameter's."""
        return self.held.name

    @property
    def parameter(self) -> torch.Tensor:
        """In the type the model computes in."""
        return self.held.parameter


@dataclass(frozen=True)
class Bucket:
    """What is updated at once, and all that the update reads, writes and keeps; flat, of one length.

    Master and moments are fp32, and the gradient is unless memory is saved. A parameter that is fp32 is its
    own master, unless the one lies on the host and the other does not.
    """

    parameter: torch.Tensor
    gradient: torch.Tensor  # summed over the whole batch, when it is updated
    master: torch.Tensor
    exp_avg: torch.Tensor  # this and the next as torch calls them
    exp_avg_sq: torch.Tensor
    updates: torch.Tensor  # so far; a scalar
    decay: bool
    runs: tuple[Run, ...]

    def round(self) -> None:
        """Bring the master into the parameter."""
        if self.parameter is not self.master:
            self.parameter.copy_(self.master)

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """What must be kept, by kind."""
        return {kind: getattr(self, kind) for kind in KINDS}

    def kept(self, run: Run) -> dict[str, torch.Tensor]:
        """What must be kept of a run, as live views."""
        return {kind: tensor[run.at] for kind, tensor in self.state.items()}


@dataclass(frozen=True)
class Pruned:
    """A run of kept elements, in the buffer of a chunk and in the parameter they belong to."""

    parameter: torch.Tensor
    kept: Kept
    run: Run


@dataclass(frozen=True)
class Weighed:
    """Gradients without the padding, and what an element of each counts in a sum over the world."""

    gradients: list[torch.Tensor]
    weights: torch.Tensor  # fp64


@dataclass(frozen=True)
class Chunk:
    """What is reduced in one operation; ``own`` is the share of it that this rank updates."""

    kind: Kind
    peers: Peers  # whose gradients are summed
    sharded: bool  # whether ``own`` is less than the whole
    names: tuple[str, ...]  # the parameters that have a part in it
    parameter: torch.Tensor
    gradient: torch.Tensor
    own_parameter: torch.Tensor
    own_gradient: torch.Tensor
    weighed: Weighed  # of ``own_gradient``
    buckets: tuple[Bucket, ...]
    pruned: tuple[Pruned, ...] = ()

    def expand(self) -> None:
        """Bring what is kept of pruned parameters from ``parameter``, which has all shares, to them."""
        for one in self.pruned:
            one.kept.expand(one.parameter, self.parameter[one.run.at], one.run.begin)
