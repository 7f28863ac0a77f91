"""What disturbs a step: operations that vary, ranks that are slow, ranks that pause.

The ranks of a tensor-parallel *team* (x·y·z of them) meet in collectives, so an operation takes as long as on
the slowest of them. On one rank it takes its seconds, times a lognormal factor J of mean 1 and of coefficient
of variation ``jitter``, times ``slow_factor`` on a slow rank. Of a team with f fast and s slow members the
slowest has the distribution

    P(factor ≤ x) = F(x)^f · F(x / slow_factor)^s,    F that of J,

which is drawn by its inverse, so a team of thousands costs no more than one rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hpcdl.errors import UsageError
from hpcdl.planner.space import Floats, Ints

_SHARES = 1 << 16
"""Equally likely values that stand for a distribution: a random 16-bit number picks one."""

_NORMAL = np.linspace(-9, 9, 4097)
_LOG_NORMAL_CDF = np.array(
    [
        math.log(math.erfc(-z / math.sqrt(2)) / 2) if z < 0 else math.log1p(-math.erfc(z / math.sqrt(2)) / 2)
        for z in _NORMAL
    ]
)

_MOST_JITTER = 2.0  # beyond it, too much of the mean lies above the largest of the equally likely values
_MOST_PAUSES = 0.1  # of one rank in one operation; then one in 20 of those that pause would pause again


@dataclass(frozen=True)
class Disturbance:
    """What goes wrong in a step; by default nothing.

    Attributes:
        jitter: coefficient of variation of the time that an operation (a forward, a backward or the deferred
            part of one, of one microbatch) takes on one rank. The mean stays what it was.
        slow_share: chance of a rank to be slow for a whole step; which ranks are is drawn anew for each step.
        slow_factor: how many times as long every operation takes on a slow rank.
        pause_rate: pauses of a rank a second of computing.
        pause_seconds: how much longer an operation takes in which a rank of the team pauses. However many of
            them do, it is once: they pause together.

    Raises:
        UsageError: a number that none of this can have.
    """

    jitter: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 1.0
    pause_rate: float = 0.0
    pause_seconds: float = 0.0

    def __post_init__(self) -> None:
        _check("jitter", self.jitter, 0.0, _MOST_JITTER, "0.05 is a twentieth of an operation's mean")
        _check("slow_share", self.slow_share, 0.0, 1.0, "0.01 is one rank in a hundred")
        _check("slow_factor", self.slow_factor, 1.0, math.inf, "1.2 is a fifth longer")
        _check("pause_rate", self.pause_rate, 0.0, math.inf, "0.001 is one in 1000 seconds of a rank")
        _check("pause_seconds", self.pause_seconds, 0.0, math.inf, "0.1 is a tenth of a second")


def _check(key: str, value: float, least: float, most: float, example: str) -> None:
    if not math.isfinite(value) or not least <= value <= most:
        bounds = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
        raise UsageError(f"{key} {value:g} is not a number {bounds}", f"set {key} to one; {example}")


class Draws:
    """Draws what operations take in pipelines of teams; each kind of disturbance has luck of its own.

    Args:
        disturbance: what goes wrong.
        team: ranks that do an operation together.
        seed: the same seed, the same luck.
    """

    def __init__(self, disturbance: Disturbance, team: int, seed: int) -> None:
        self._disturbance = disturbance
        self._team = team
        self._jitter, self._slow, self._pauses, self.others = np.random.default_rng(seed).spawn(4)

    def seconds(self, undisturbed: Floats, ranks: Ints, pipelines: int) -> Floats:
        """Seconds of each operation in so many pipelines.

        Args:
            undisturbed: seconds of each operation, shape (operations,).
            ranks: which rank of its pipeline does it, shape (operations,).
            pipelines: how many to draw, each with slow ranks of its own.

        Returns:
            Shape (operations, pipelines).

        Raises:
            UsageError: pauses are so many that one rank often pauses twice in an operation.
        """
        d, shape = self._disturbance, (len(ranks), pipelines)
        slow = self._slow.binomial(self._team, d.slow_share, (int(ranks.max()) + 1, pipelines))
        states, state = np.unique(slow, return_inverse=True)
        tables = np.concatenate(
            [slowest(d.jitter, d.slow_factor, self._team - s, s) for s in states.tolist()]
        )
        begins = (state.reshape(slow.shape) * _SHARES)[ranks]
        begins += self._jitter.integers(_SHARES, size=shape, dtype=np.uint16)
        seconds: Floats = tables.take(begins)
        seconds *= undisturbed[:, None]
        if d.pause_rate and d.pause_seconds:
            seconds += d.pause_seconds * (self._pauses.random(shape) < self._chance(undisturbed)[:, None])
        return seconds

    def _chance(self, undisturbed: Floats) -> Floats:
        """That a rank of the team pauses in each operation."""
        rate, longest = self._disturbance.pause_rate, float(undisturbed.max())
        if rate * longest > _MOST_PAUSES:
            raise UsageError(
                f"pause_rate {rate:g} a second is {rate * longest:.2g} pauses of a rank in an operation of "
                f"{longest:.3g} s, which is no rare event",
                f"set pause_rate to at most {_MOST_PAUSES / longest:.3g}, or raise jitter instead",
            )
        chance: Floats = -np.expm1(-rate * self._team * undisturbed)
        return chance


@lru_cache(maxsize=128)
def slowest(jitter: float, factor: float, fast: int, slow: int) -> Floats:
    """How many times as long the slowest of a team takes: equally likely values, ascending.

    Args:
        jitter: coefficient of variation of one member.
        factor: of each slow member.
        fast: members that are not slow.
        slow: members that are.
    """
    if not jitter:
        return np.full(_SHARES, factor if slow else 1.0)
    deviation = math.sqrt(math.log1p(jitter**2))
    grid = deviation * _NORMAL - deviation**2 / 2  # logarithms of J; its mean is 1
    later = math.log(factor)
    points = np.union1d(grid, grid + later) if slow else grid
    log_cdf = fast * np.interp(points, grid, _LOG_NORMAL_CDF)
    log_cdf += slow * np.interp(points - later, grid, _LOG_NORMAL_CDF)
    middles = (np.arange(_SHARES) + 0.5) / _SHARES
    values: Floats = np.exp(np.interp(np.log(middles), log_cdf, points))
    return values
