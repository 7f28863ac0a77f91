"""What a collective costs that runs beside computing: what it cannot hide, and what it takes from the rest.

A collective of h seconds runs beside C seconds of computing. Both slow down: the collective, as links and
memory are shared, ``beside_slowdown`` times, and computing, whose cores it takes, loses a share of
``overlap_price``. Together they last until one of them is done,

    joint = min(slowdown · h, overlap · C / (1 - price)),

and then the other goes on alone. So h - joint/slowdown is exposed, computing takes price · joint longer, and
(1 - price) · joint of it has its collective. With price · slowdown < 1 nothing gets slower by overlap.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hpcdl.planner.space import Bools, Floats
from hpcdl.sites.profile import Profile


class Beside(NamedTuple):
    """Seconds that a collective costs, and the computing that still has nothing beside it."""

    exposed: Floats
    price: Floats
    left: Floats


def beside(profile: Profile, collective: Floats, compute: Floats, *, wanted: Bools | bool) -> Beside:
    """A collective beside computing where ``wanted``, else after it.

    Args:
        profile: how much of computing can hide something and what that costs.
        collective: seconds that it takes alone.
        compute: seconds of computing that nothing runs beside yet.
        wanted: whether they run beside each other.
    """
    if not np.any(wanted) or not collective.any():
        return Beside(collective, 0 * collective, compute)
    kept = 1 - profile.overlap_price
    room = wanted * profile.overlap * compute / kept
    joint = np.minimum(profile.beside_slowdown * collective, room)
    exposed = collective - joint / profile.beside_slowdown
    return Beside(exposed, profile.overlap_price * joint, compute - kept * joint)
