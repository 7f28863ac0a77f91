"""Where one rank stands: its groups, its pipeline neighbours, its share of the batch.

Everything is computed from the decomposition and the rank alone, so it is never communicated and
two topologies can live in one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hpcdl.spec.decomposition import AXES, Coordinate, Decomposition


@dataclass(frozen=True)
class Topology:
    """One rank's view of a decomposition."""

    decomposition: Decomposition
    rank: int

    @cached_property
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
    def chooses(self) -> bool:
        """Whether what to do next can depend on what arrived, so that a team must agree."""
        d = self.decomposition
        return d.pipeline > 1 and (not self.is_last or d.interleave > 1 or d.defer_weights)

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


LANES = {"weights": "weights"}
"""Groups by name that need a communicator of their own although others have the same ranks."""


def memberships(topology: Topology, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """The ranks of every group of one rank, by name; a group that it has no use for is the rank alone.

    Args:
        topology: where the rank sits.
        tied: whether the LM head shares the embedding, so that the pipeline's ends must talk.
    """
    alone = (topology.rank,)
    at_end = tied and (topology.is_first or topology.is_last)
    return {
        "x": topology.group("x"),
        "y": topology.group("y"),
        "z": topology.group("z"),
        "weights": topology.group("z"),
        "data": topology.group("data"),
        "batch": topology.group("data", "z"),
        "world": topology.group(*AXES),
        # Not all ranks have these. They come last, and the members of each have made equally many before.
        "ends": topology.ends if at_end else alone,
        "team": topology.group("x", "y", "z") if topology.chooses else alone,
    }
