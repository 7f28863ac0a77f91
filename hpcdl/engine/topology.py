"""Where one rank stands: its groups, its pipeline neighbours, its share of the batch.

Everything is computed from the decomposition and the rank alone, so it is never communicated and
two topologies can live in one process.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcdl.spec.decomposition import Coordinate, Decomposition


@dataclass(frozen=True)
class Topology:
    """One rank's view of a decomposition."""

    decomposition: Decomposition
    rank: int

    @property
    def coordinate(self) -> Coordinate:
        """Where this rank sits."""
        return self.decomposition.coordinate(self.rank)

    def group(self, *axes: str) -> tuple[int, ...]:
        """The ranks that differ from this one along ``axes`` only, in rank order."""
        return self.decomposition.group(self.rank, *axes)

    def index(self, axis: str) -> int:
        """The position of this rank along ``axis``."""
        return int(getattr(self.coordinate, axis))

    def degree(self, axis: str) -> int:
        """How many positions ``axis`` has."""
        return int(getattr(self.decomposition, axis))

    @property
    def team(self) -> tuple[int, ...]:
        """The ranks that compute one stage of one replica together: all of x, y and z."""
        return self.group("x", "y", "z")

    @property
    def stage(self) -> int:
        """The place of this rank in its pipeline."""
        return self.coordinate.pipeline

    @property
    def is_first(self) -> bool:
        """Whether this rank reads tokens."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank computes the loss."""
        return self.stage == self.decomposition.pipeline - 1

    @property
    def previous(self) -> int:
        """The rank before this one in the ring of its pipeline: it sends activations here."""
        return self.group("pipeline")[self.stage - 1]

    @property
    def next(self) -> int:
        """The rank after this one in the ring of its pipeline: it sends gradients here."""
        return self.group("pipeline")[(self.stage + 1) % self.decomposition.pipeline]

    @property
    def ends(self) -> tuple[int, ...]:
        """The first and the last rank of this rank's pipeline: those that share a tied embedding."""
        pipeline = self.group("pipeline")
        return tuple(dict.fromkeys((pipeline[0], pipeline[-1])))

    @property
    def batch_shard(self) -> int:
        """Which of the ``decomposition.batch_shards`` parts of the batch this rank reads."""
        here = self.coordinate
        return here.data * self.decomposition.z + here.z

    @property
    def reports_loss(self) -> bool:
        """Whether this rank adds its loss to the world's sum.

        The ranks along x and y of the last stage compute the same loss, so one of them speaks.
        """
        return self.is_last and self.coordinate.x == 0 and self.coordinate.y == 0
