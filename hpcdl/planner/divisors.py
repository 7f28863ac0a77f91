"""Ways to write a number as a product."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def factorisations(number: int, parts: int) -> Ints:
    """All ordered products of ``parts`` positive integers that make ``number``, shape (count, parts)."""
    result = np.ones((1, parts), dtype=np.int64)
    for prime, exponent in _prime_factors(number):
        powers = prime ** _compositions(exponent, parts)
        result = (result[:, None, :] * powers[None, :, :]).reshape(-1, parts)
    return result


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return sorted(int(row[0]) for row in factorisations(number, 2))


def prime_factors(number: int) -> list[int]:
    """The different primes that divide ``number``, ascending; 1 where there is none."""
    return [prime for prime, _ in _prime_factors(number)] or [1]


def _prime_factors(number: int) -> Iterator[tuple[int, int]]:
    prime = 2
    while number > 1:
        if prime * prime > number:
            prime = number
        exponent = 0
        while number % prime == 0:
            number //= prime
            exponent += 1
        if exponent:
            yield prime, exponent
        prime += 1


def _compositions(total: int, parts: int) -> Ints:
    """All ways to write ``total`` as an ordered sum of ``parts`` terms >= 0: stars and bars."""
    bars = np.array(list(combinations(range(total + parts - 1), parts - 1)), dtype=np.int64)
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=(-1, total + parts - 1))
    return np.diff(edges, axis=1) - 1
