"""Making this rank's part of every parameter, and remembering what it is a part of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from hpcdl.engine.groups import Groups
from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.tensor.fetch import Fetch
from hpcdl.engine.tensor.initial import normal_shard
from hpcdl.engine.tensor.later import Later
from hpcdl.engine.tensor.sharding import Sharding
from hpcdl.engine.topology import Topology
from hpcdl.spec.job import Overlap


class Deposit:
    """Where the gradient of one parameter goes, and how often in a microbatch.

    Autograd itself brings the gradients of vectors and tables, once a microbatch. The layers that communicate
    bring those of their matrices, when the reduction over z is finished or when a deferred product is made:
    that may be long after autograd has passed, so it cannot be autograd that counts.
    """

    def __init__(self, parameter: nn.Parameter, *, by_autograd: bool) -> None:
        self.by_autograd = by_autograd
        self.times = int(by_autograd)  # a microbatch; each layer that uses a matrix adds itself
        self.add: Callable[[torch.Tensor], None] = self._into_grad
        self._parameter = parameter

    def _into_grad(self, gradient: torch.Tensor) -> None:
        grad = self._parameter.grad
        self._parameter.grad = gradient if grad is None else grad + gradient


@dataclass(frozen=True)
class Held:
    """One parameter as this rank holds it."""

    name: str
    parameter: nn.Parameter
    deposit: Deposit
    sharding: Sharding
    shared: bool  # also held by the other end of the pipeline: a tied embedding

    @property
    def decay(self) -> bool:
        """Whether weight decay applies: to matrices only."""
        return len(self.sharding.shape) == 2

    def is_first(self, topology: Topology, spread: Sequence[str] = ()) -> bool:
        """Whether a rank is the one that speaks for its elements among all that hold the same.

        Args:
            topology: where the rank sits.
            spread: axes along which the elements are shared out, although the parameter is copied there.
        """
        copying = [axis for axis in self.sharding.copying if axis not in spread]
        return not any(map(topology.index, copying)) and (topology.is_first or not self.shared)


@dataclass(frozen=True)
class Part:
    """A run of elements of one parameter, with everything that training must keep of them.

    ``tensors`` are flat, fp32 and live: ``master``, ``exp_avg``, ``exp_avg_sq``. Who fills them in place and
    then tells the learner has restored this part. Of a pruned parameter they have the elements at ``index``,
    and those of the span that are not there are zero.
    """

    name: str
    sharding: Sharding
    span: slice  # of the rank's flattened block
    tensors: dict[str, torch.Tensor]
    writes: bool  # whether this rank is the one among its replicas that saves it
    index: torch.Tensor | None = None  # int32, ascending, from the start of the span; None: all elements


@dataclass(frozen=True)
class Numerics:
    """In what type, where, and from which seed parameters are made; what runs beside computing with them."""

    dtype: torch.dtype
    device: torch.device
    seed: int
    overlap: Overlap = field(default_factory=Overlap)

    @cached_property
    def host(self) -> HostMemory:
        """What the rank keeps in the memory of its host."""
        return HostMemory(self.device)


class Factory:
    """Makes parameters for one rank; ``held`` lists them in the order they were asked for.

    That order is the order of execution, which the gradient buckets rely on.
    """

    def __init__(self, topology: Topology, groups: Groups, numerics: Numerics) -> None:
        self.topology = topology
        self.groups = groups
        self.numerics = numerics
        self._on_host = topology.decomposition.offload == "parameters"  # matrices are, between their uses
        fetch = Fetch(groups.weights, numerics.device) if self._on_host else None
        self.later = Later(groups, numerics.overlap, fetch)
        self.held: list[Held] = []

    def matrix(
        self, name: str, shape: tuple[int, int], axes: tuple[str, str], std: float, *, shared: bool = False
    ) -> nn.Parameter:
        """A matrix of Algorithm 1: its block over two axes, flattened, cut over z; normal values."""
        sharding = Sharding(shape, axes, flat=True)
        return self._hold(name, self._normal(name, sharding, std), sharding, shared=shared)

    def used(self, weight: nn.Parameter) -> Deposit:
        """Where one more use of a matrix brings its gradients."""
        deposit = next(one.deposit for one in self.held if one.parameter is weight)
        deposit.times += 1
        return deposit

    def table(self, name: str, shape: tuple[int, int], axis: str, std: float) -> nn.Parameter:
        """A matrix whose columns are cut over ``axis`` and whose block every z rank holds whole."""
        sharding = Sharding(shape, (None, axis), flat=False)
        values = self._normal(name, sharding, std).view(sharding.block_shape(self.topology))
        return self._hold(name, values, sharding)

    def vector(self, name: str, size: int, axis: str, value: float) -> nn.Parameter:
        """A vector cut over ``axis``, filled with ``value``."""
        sharding = Sharding((size,), (axis,), flat=False)
        return self._hold(name, torch.full(sharding.block_shape(self.topology), value), sharding)

    def _normal(self, name: str, sharding: Sharding, std: float) -> torch.Tensor:
        return normal_shard(self.numerics.seed, name, std, sharding, self.topology)

    def _hold(
        self, name: str, values: torch.Tensor, sharding: Sharding, *, shared: bool = False
    ) -> nn.Parameter:
        place = torch.device("cpu") if self._on_host and sharding.flat else self.numerics.device
        parameter = nn.Parameter(values.to(place, self.numerics.dtype))
        deposit = Deposit(parameter, by_autograd=not sharding.flat)
        self.held.append(Held(name, parameter, deposit, sharding, shared))
        return parameter
