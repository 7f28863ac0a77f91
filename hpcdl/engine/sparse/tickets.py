"""Early-bird tickets: masks drawn while a dense network trains, until they stop to change.

You et al. (ICLR 2020) found that the mask which magnitude pruning would draw settles long before the weights
do. The last few masks are remembered, and when the largest distance between two of them, in elements that
differ, is small, the network is pruned by the last. A mask is a bit of a byte for each element.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

import torch

from hpcdl.engine.groups import Peers


@dataclass
class Tickets:
    """The last masks of one rank.

    Attributes:
        masks: how many are remembered, at most 8.
        history: of each matrix as this rank holds it, flat uint8: bit 0 is the last mask.
        drawn: how many there are so far, at most ``masks``.
    """

    masks: int
    history: dict[str, torch.Tensor] = field(default_factory=dict)
    drawn: int = 0

    def add(self, drawn: Mapping[str, torch.Tensor]) -> None:
        """Remember the boolean masks ``drawn``, and forget the oldest."""
        for name, mask in drawn.items():
            past = self.history.get(name, torch.zeros_like(mask, dtype=torch.uint8))
            self.history[name] = (past << 1) | mask.reshape(-1)
        self.drawn = min(self.drawn + 1, self.masks)

    @torch.no_grad()
    def differing(self, counted: list[str], world: Peers, device: torch.device) -> int:
        """In how many elements, over all ranks, the two masks differ that differ most.

        Args:
            counted: the matrices whose elements this rank counts; of all ranks that hold the same, one does.
            world: all ranks.
            device: where messages to them are made.
        """
        pairs = list(combinations(range(self.drawn), 2))
        counts = torch.zeros(max(len(pairs), 1), dtype=torch.int64, device=device)
        for name in counted:
            past = self.history[name]
            for place, (one, other) in enumerate(pairs):
                counts[place] += (((past >> one) ^ (past >> other)) & 1).sum()
        world.all_reduce(counts).wait()
        return int(counts.max().item())
