"""Curves with fewer points that look the same: what is highest and lowest anywhere stays. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

POINTS = 2000
_KEPT = 5  # of each stretch: its first and last point, its lowest and highest, one that is no number


def thinned(values: Sequence[float], limit: int = POINTS) -> list[int]:
    """Which of ``values`` to draw, in order: all of them up to ``limit``, else about as many.

    The first and the last are kept, and of each stretch the lowest, the highest and one that is not finite.
    """
    count = len(values)
    if count <= limit:
        return list(range(count))
    numbers = np.asarray(values, dtype=float)
    kept = {0, count - 1}
    edges = np.linspace(0, count, max(1, limit // _KEPT) + 1).astype(int)
    for start, end in pairwise(edges):
        part = numbers[start:end]
        finite = np.isfinite(part)
        kept |= {int(start), int(end) - 1}
        if finite.any():
            kept.add(int(start + np.argmin(np.where(finite, part, np.inf))))
            kept.add(int(start + np.argmax(np.where(finite, part, -np.inf))))
        if not finite.all():
            kept.add(int(start + np.argmin(finite)))
    return sorted(kept)


def curve(steps: Sequence[int], values: Sequence[float]) -> dict[str, list[Any]]:
    """A curve as JSON takes it: ``step``, ``value``, and ``odd`` with the words of what is not finite.

    A value that is not finite is null, so the curve has a gap there.
    """
    places = thinned(values)
    return {
        "step": [steps[place] for place in places],
        "value": [_short(values[place]) for place in places],
        "odd": [
            [steps[place], str(float(values[place]))] for place in places if not math.isfinite(values[place])
        ],
    }


def _short(value: float) -> float | None:
    """Six digits, which no eye tells from more; None for what JSON cannot say."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
