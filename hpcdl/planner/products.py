"""How long matrix products take: tiles in waves over a device's processors, and never less than their bytes.

A product of m×k and k×n is cut into output tiles of 128×256, as large kernels of cuBLAS and CUTLASS are, and a
device works on as many at once as it has processors. One tile takes the time of its 2·128·256·(k + k0) FLOPs at
a processor's part of the peak; k0 is what filling and draining it costs. Idle processors leave the others more
power and bandwidth, so an unfinished wave costs its share and three quarters of the rest:

    waves = w + 3/4·(ceil(w) - w),  w = count·ceil(m/128)·ceil(n/256) / processors   (or tiles of 256×128)
    seconds = max(waves · 2·128·256·(k + k0) / (peak·efficiency / processors), bytes / memory rate)

k0 = 128 and the three quarters, and k0 = 400 where a gradient of weights is added to what is there in fp32, are
least absolute errors over 183 products measured on an A100 (SimuMax, configs/system/a100_pcie.json): 2.8 %
forward and for gradients of inputs, 2.3 % for gradients of weights. A plain share of the peak is 5.5 % off.
"""

from __future__ import annotations

import numpy as np

from hpcdl.planner.case import Case
from hpcdl.planner.space import Floats

Size = Floats | float

_TILES = ((128, 256), (256, 128))
_LAST_WAVE = 0.75
_FILL = 128
_FILL_ADDING = 400


def product(case: Case, m: Size, n: Size, k: Size, count: Size = 1.0, *, adding: bool = False) -> Floats:
    """Seconds of ``count`` products of m×k and k×n in one kernel; ``adding``: to an output that is there."""
    bytes_moved = count * (m * k + k * n + m * n) * case.element_bytes
    return np.maximum(_computed(case, m, n, k, count, adding), bytes_moved / case.memory_rate)


def _computed(case: Case, m: Size, n: Size, k: Size, count: Size, adding: bool) -> Floats:
    rate = case.peak_flops * case.profile.gemm_efficiency * case.profile.site_efficiency
    processors = case.profile.processors
    if not processors:
        return np.asarray(2 * count * m * n * k / rate)
    waves = np.minimum(*(_waves(count * np.ceil(m / a) * np.ceil(n / b) / processors) for a, b in _TILES))
    depth = k + (_FILL_ADDING if adding else _FILL)
    seconds: Floats = waves * 2 * _TILES[0][0] * _TILES[0][1] * depth * processors / rate
    return seconds


def _waves(exact: Floats) -> Floats:
    waves: Floats = exact + _LAST_WAVE * (np.ceil(exact) - exact)
    return waves
