"""Whether an attempt may go on, from what was found, and what the ranks concerned say if not. Pure."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass

from hpcdl.errors import BadNodeError, EngineError, PlacementError
from hpcdl.placement import Placement

_ANOTHER_NODE = "resume goes on without it where the site allows; tell the site of it"
_SITE_FILE = (
    "it is so everywhere, so no node is bad: check launch, gpu_visibility and cores of the site file, or set "
    "health.preflight: off"
)
_ONLY_NODE = (
    "it is so for every rank of the only node: check launch, gpu_visibility and cores of the site file; if "
    "they are right it is the node, and resources.exclude leaves it out"
)


@dataclass(frozen=True)
class Verdict:
    """What every rank is told.

    Args:
        refused: what is wrong, by node; nothing if the attempt goes on.
        ranks: those that it is said of.
        everywhere: whether the nodes are not to blame.
    """

    refused: dict[str, str]
    ranks: tuple[int, ...] = ()
    everywhere: bool = False

    @property
    def words(self) -> str:
        """All of it."""
        return "; ".join(f"{host}: {why}" for host, why in self.refused.items())

    def error(self, host: str) -> EngineError:
        """What a rank on ``host`` that is concerned ends with."""
        if self.everywhere:
            return PlacementError(f"ranks are not where they should be: on {self.words}", self._way_out)
        return BadNodeError(f"node {host} is bad: {self.refused[host]}", _ANOTHER_NODE)

    @property
    def _way_out(self) -> str:
        return _SITE_FILE if len(self.refused) > 1 else _ONLY_NODE

    def to_line(self) -> str:
        """For the other ranks; ``from_line`` reads it."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_line(text: str) -> Verdict:
        """What ``to_line`` wrote."""
        told = json.loads(text)
        return Verdict(**{**told, "ranks": tuple(told["ranks"])})


def verdict(placement: Placement) -> Verdict:
    """What follows from the findings.

    What is so on all of several nodes comes from how ranks are started, and so does a number of ranks that
    only a launcher can have chosen. What is so for all ranks of the only node may: one node after the other
    would be named if it did.
    """
    grave = [finding for finding in placement.findings if finding.grave]
    words = defaultdict(list)
    for finding in grave:
        words[finding.host].append(finding.words)
    nodes, seats = len(placement.hosts), len(placement.seats)
    alike = len(words) == nodes if nodes > 1 else any(len(each.ranks) == seats for each in grave)
    everywhere = alike or any(each.kind == "placement" for each in grave)
    ranks = sorted({rank for finding in grave for rank in finding.ranks})
    return Verdict({host: "; ".join(each) for host, each in words.items()}, tuple(ranks), everywhere)
