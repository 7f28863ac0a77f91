"""A curve in letters, two by four dots each. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # Unicode 3.0, block 2800: by row and column


def curve(values: Sequence[float], width: int, height: int) -> list[str]:
    """``values`` as ``height`` lines of ``width`` letters, the highest at the top.

    Each column of dots shows all that happened in its part, from the lowest to the highest, joined to the end
    of the part before; what is not finite is left out.
    """
    across, down = 2 * width, 4 * height
    parts = _parts(values, across)
    known = [value for part in parts for value in part]
    cells = [[0] * width for _ in range(height)]
    if known:
        low, high = min(known), max(known)
        for column, part in enumerate(parts):
            for row in _rows(part, low, high, down):
                cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
    return ["".join(chr(0x2800 + dots) if dots else " " for dots in line) for line in cells]


def _parts(values: Sequence[float], count: int) -> list[list[float]]:
    """Lowest and highest of each of ``count`` stretches; few values fill as many columns as they are."""
    stretches = min(count, len(values))
    edges = [place * len(values) // max(1, stretches) for place in range(stretches + 1)]
    parts = []
    before: list[float] = []
    for start, end in pairwise(edges):
        finite = [value for value in values[start:end] if math.isfinite(value)]
        reached = [*before, *finite] if finite else []
        parts.append([min(reached), max(reached)] if reached else [])
        before = finite[-1:]
    return parts


def _rows(part: Sequence[float], low: float, high: float, down: int) -> range:
    if not part:
        return range(0)
    half = high / 2 - low / 2  # the whole of it may be more than a float can hold
    shares = [(value / 2 - low / 2) / half if half > 0 else 0.0 for value in part]
    bottom, top = (down - 1 - round(share * (down - 1)) for share in shares)
    return range(top, bottom + 1)
