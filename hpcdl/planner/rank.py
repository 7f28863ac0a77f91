"""Which candidate is best, and which is the best of those that differ from it along one axis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hpcdl.planner.comm import Floats
from hpcdl.planner.space import Candidates, Ints
from hpcdl.spec.decomposition import AXES

CHOICES = (*AXES, "microbatch", "full_recompute")
"""What a rival can differ in."""

_DIGITS = 9  # steps that agree to so many digits are the same; the rest is rounding


def order(candidates: Candidates, step_seconds: Floats) -> Ints:
    """Positions from the fastest on.

    Of equal ones the simpler comes first: fewer axes in use, no recomputation, then smaller degrees in the
    order y, x, z, pipeline, data, and the larger microbatch.
    """
    c = candidates
    scale = 10.0 ** (_DIGITS - np.ceil(np.log10(step_seconds)))
    rounded = np.round(step_seconds * scale) / scale
    axes_used = sum((getattr(c, axis) > 1).astype(int) for axis in AXES)
    keys = (-c.microbatch, c.data, c.pipeline, c.z, c.x, c.y, c.full_recompute, axes_used, rounded)
    return np.lexsort(keys)  # the last key decides first


def rivals(candidates: Candidates, ordered: Ints) -> Iterator[tuple[str, int]]:
    """For each choice the position of the fastest candidate that differs in it from the winner."""
    winner = ordered[0]
    for choice in CHOICES:
        values = getattr(candidates, choice)
        others = ordered[values[ordered] != values[winner]]
        if len(others):
            yield choice, int(others[0])
