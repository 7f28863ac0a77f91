"""Which part of a full parameter one rank holds (pure).

A matrix is first cut into a block over two tensor axes; a matrix of Algorithm 1 is then flattened
and cut over z (SC'24 AxoNN paper, arXiv 2502.08145, section V-A). Vectors are cut over one axis and
replicated over z.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from hpcdl.engine.topology import Topology
from hpcdl.spec.decomposition import AXES


@dataclass(frozen=True)
class Sharding:
    """How one parameter is cut.

    Args:
        shape: of the full parameter.
        axes: the decomposition axis that cuts each dimension, or ``None``.
        flat: whether the block is flattened and cut over z.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    flat: bool

    def block(self, topology: Topology) -> tuple[slice, ...]:
        """The block of the full parameter that this rank's z group holds together."""
        return tuple(
            slice(0, size) if axis is None else _part(size, topology.index(axis), topology.degree(axis))
            for size, axis in zip(self.shape, self.axes, strict=True)
        )

    def block_shape(self, topology: Topology) -> tuple[int, ...]:
        """The shape of that block."""
        return tuple(piece.stop - piece.start for piece in self.block(topology))

    def span(self, topology: Topology) -> slice:
        """The elements of the flattened block that this rank holds."""
        elements = prod(self.block_shape(topology))
        return _part(elements, topology.index("z"), topology.degree("z")) if self.flat else slice(0, elements)

    def replicas(self, topology: Topology) -> int:
        """How many ranks of one pipeline stage hold the same elements."""
        return prod(topology.degree(axis) for axis in self.copying)

    @property
    def copying(self) -> list[str]:
        """The axes along which the ranks of a stage hold the same elements."""
        cutting = {*self.axes, "z"} if self.flat else set(self.axes)
        return [axis for axis in AXES if axis != "pipeline" and axis not in cutting]


def _part(size: int, index: int, parts: int) -> slice:
    """The ``index``-th of equal parts; the spec refuses decompositions that leave a remainder."""
    width = size // parts
    return slice(index * width, (index + 1) * width)
