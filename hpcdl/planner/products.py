"""How long matrix products take: tiles in waves over a device's processors, and never less than their bytes.

A product of m×k and k×n is cut into output tiles of 128×256, as large kernels of cuBLAS and CUTLASS are, and
smaller ones where m or n is. A device works on as many at once as it has processors. A tile of a×b takes the
time of 2·a·b·(k + k0) FLOPs at a processor's part of the peak; k0 is what filling and draining it costs. Idle
processors leave the others more power and bandwidth, so an unfinished wave costs its share and three
quarters of the rest:

    waves = w + 3/4·(ceil(w) - w),  w = number·ceil(m/128)·ceil(n/256) / processors   (or tiles of 256×128)
    seconds = max(waves · 2·128·256·(k + k0) / (peak·efficiency / processors), bytes / memory rate)

k0 is 128. For the gradient of a weight, which is added in fp32 to what is there, it is 400, and the
contraction, long where the output is small, may be cut in 2, 4 or 8. These and the three quarters have the
least mean error over the 183 products of an A100 in ``sites/products.csv``; benchmarks/planner/kernels.py
prints it.

Where a row of either factor or of the result is no multiple of the profile's ``alignment`` the product takes
1.3 times as long; that was fitted to every third row of BLOOM's tuning runs, some with widths of 1800.

A product of which one is measured within half an octave of m, n and k, for the same end and on the same kind
of device, is corrected by how far the formula is off there, the less the further away:

    factor = 1 + (1 - distance/0.5) · (measured / formula - 1),  distance = max |log2(size / measured size)|
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hpcdl.planner.case import Case
from hpcdl.planner.space import Bools, Floats
from hpcdl.sites.measured import WEIGHT, measured_products

Size = Floats | float


class Product(NamedTuple):
    """So many products of m×k and k×n in one kernel."""

    m: Size
    n: Size
    k: Size
    number: Size = 1.0

    @property
    def flops(self) -> Floats:
        """Multiplications and additions."""
        return np.asarray(2.0 * self.number * self.m * self.n * self.k)

    @property
    def elements(self) -> Floats:
        """Of both factors and the result."""
        return np.asarray(self.number * (self.m * self.k + self.k * self.n + self.m * self.n))


_TILES = ((128, 256), (256, 128))
_LAST_WAVE = 0.75
_FILL, _FILL_ADDING = 128, 400
_CUTS = (1, 2, 4, 8)
_UNALIGNED = 1.3
_NEAR = 0.5  # octaves within which a measured product says something of another


def seconds(case: Case, product: Product, end: int | None = None) -> Floats:
    """Time of a kernel.

    Args:
        case: the device and its profile.
        product: what it multiplies.
        end: of a linear layer's product, as ``sites.measured`` has them; a weight's gradient is added to what
            is there. None: another product, which nothing measured corrects.
    """
    rate = case.peak_flops * case.profile.gemm_efficiency * case.profile.site_efficiency
    flops = occupied_flops(product, case.profile.processors, adding=end == WEIGHT)
    if end is not None:
        flops = flops * _correction(case, product, end) * _alignment(case, product)
    time: Floats = np.maximum(flops / rate, product.elements * case.element_bytes / case.memory_rate)
    return time


def occupied_flops(product: Product, processors: int, *, adding: bool) -> Floats:
    """FLOPs that a device could do meanwhile; without ``processors`` no more than it does."""
    if not processors:
        return product.flops
    m, n, k, number = product
    fill, cuts = (_FILL_ADDING, _CUTS) if adding else (_FILL, (1,))
    options = [
        _waves(cut * number * np.ceil(m / high) * np.ceil(n / wide) / processors)
        * high
        * wide
        * (k / cut + fill)
        for high, wide in ((_tile(m, a), _tile(n, b)) for a, b in _TILES)
        for cut in cuts
    ]
    flops: Floats = 2.0 * processors * np.min(np.broadcast_arrays(*options), axis=0)
    return flops


def is_near(case: Case, product: Product, end: int) -> Bools:
    """Whether a product of such a shape was measured on such a device."""
    verdict: Bools = _nearest(case, product, end)[0] < _NEAR
    return verdict


def _tile(size: Size, largest: int) -> Floats:
    """Height or width of tiles: kernels come in powers of two."""
    tile: Floats = np.minimum(largest, 2.0 ** np.ceil(np.log2(size)))
    return tile


def _waves(exact: Floats) -> Floats:
    waves: Floats = exact + _LAST_WAVE * (np.ceil(exact) - exact)
    return waves


def _alignment(case: Case, product: Product) -> Floats:
    """Times longer for a shape whose rows do not begin where the device reads best."""
    elements = case.profile.alignment // case.element_bytes
    if not elements:
        return np.ones(())
    aligned = (np.mod(product.m, elements) == 0) & (np.mod(product.n, elements) == 0)
    slower: Floats = np.where(aligned & (np.mod(product.k, elements) == 0), 1.0, _UNALIGNED)
    return slower


def _correction(case: Case, product: Product, end: int) -> Floats:
    distance, factor = _nearest(case, product, end)
    correction: Floats = 1 + np.maximum(0, 1 - distance / _NEAR) * (factor - 1)
    return correction


def _nearest(case: Case, product: Product, end: int) -> tuple[Floats, Floats]:
    """Distance in octaves of the nearest measured product, and how many times the formula's time it took."""
    sizes = np.stack(np.broadcast_arrays(*(np.asarray(size, dtype=float) for size in product[:3])), axis=-1)
    table = _table(case.profile.products, end)
    if table is None:
        return np.full(sizes.shape[:-1], np.inf), np.ones(sizes.shape[:-1])
    known, factors = table
    distances = np.abs(np.log2(sizes)[..., None, :] - known).max(axis=-1)
    return distances.min(axis=-1), factors[distances.argmin(axis=-1)]


@lru_cache(maxsize=16)
def _table(name: str, end: int) -> tuple[Floats, Floats] | None:
    """log2 of the measured sizes of one end, and measured over predicted time, where their median is one."""
    found = measured_products(name)
    if found is None:
        return None
    of_end = found.ends == end
    product = Product(*found.sizes[of_end].T)
    formula = product.flops / occupied_flops(product, found.processors, adding=end == WEIGHT)
    ratio = formula / found.efficiency[of_end]
    return np.log2(found.sizes[of_end]), ratio / np.median(ratio)
