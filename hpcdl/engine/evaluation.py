"""The loss on sequences that are never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from hpcdl.engine.data.loader import Portion


class Evaluates(Protocol):
    """What can tell its loss without learning."""

    def evaluate(self, inputs_BL: torch.Tensor, targets_BL: torch.Tensor, size: int) -> float:
        """The loss summed over the whole batch, of which this is one rank's share, divided by ``size``."""


def mean_loss(learner: Evaluates, pieces: Sequence[Portion]) -> float:
    """Mean loss a counted target over all ``pieces``; called by every rank with its share of each."""
    losses = [
        learner.evaluate(piece.inputs_BL, piece.targets_BL, piece.taken) * piece.counted for piece in pieces
    ]
    return sum(losses) / sum(piece.counted for piece in pieces)
