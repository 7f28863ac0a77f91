"""How good predictions are: errors, rank correlation and regret."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LEAST_FOR_RANKS = 3


class Pair(NamedTuple):
    """One prediction beside what was measured, and the sweep it belongs to."""

    predicted: float
    measured: float
    sweep: Hashable


@dataclass(frozen=True)
class Score:
    """Of many pairs: errors in per cent of the measured, correlations of ranks, regret in per cent.

    Attributes:
        mean: mean absolute error.
        bias: mean error, negative where too little is predicted.
        rank: Spearman's correlation over all pairs; None below three pairs.
        sweep_rank: mean of the same within each sweep of three rows or more.
        regret: mean over sweeps of how much slower the row is that is predicted fastest than the fastest.
    """

    count: int
    mean: float
    median: float
    bias: float
    worst: float
    rank: float | None
    sweeps: int
    sweep_rank: float | None
    choices: int
    regret: float | None
    worst_regret: float | None

    def to_json(self) -> dict[str, float | int | None]:
        """The figures by name."""
        return asdict(self)


def score(pairs: Sequence[Pair]) -> Score | None:
    """All measures of ``pairs``; None if there are none."""
    if not pairs:
        return None
    errors = np.array([100 * (pair.predicted / pair.measured - 1) for pair in pairs])
    ranks = _by_sweep(pairs, _LEAST_FOR_RANKS, rank_correlation)
    regrets = _by_sweep(pairs, 2, regret)
    return Score(
        count=len(pairs),
        mean=float(np.abs(errors).mean()),
        median=float(np.median(np.abs(errors))),
        bias=float(errors.mean()),
        worst=float(errors[np.argmax(np.abs(errors))]),
        rank=rank_correlation(pairs) if len(pairs) >= _LEAST_FOR_RANKS else None,
        sweeps=len(ranks),
        sweep_rank=_mean(ranks),
        choices=len(regrets),
        regret=_mean(regrets),
        worst_regret=max(regrets, default=None),
    )


def rank_correlation(pairs: Sequence[Pair]) -> float | None:
    """Spearman's: Pearson's of the ranks, equal values sharing their mean; None where all are equal."""
    predicted, measured = (
        _ranks(np.array(values)) for values in zip(*((p.predicted, p.measured) for p in pairs), strict=True)
    )
    if predicted.std() == 0 or measured.std() == 0:
        return None
    return float(np.corrcoef(predicted, measured)[0, 1])


def regret(pairs: Sequence[Pair]) -> float:
    """How much longer than the fastest the row takes that is predicted fastest, in per cent."""
    chosen = min(pairs, key=lambda pair: pair.predicted)
    return 100 * (chosen.measured / min(pair.measured for pair in pairs) - 1)


def _by_sweep(
    pairs: Iterable[Pair], least: int, measure: Callable[[Sequence[Pair]], float | None]
) -> list[float]:
    sweeps: dict[Hashable, list[Pair]] = {}
    for pair in pairs:
        sweeps.setdefault(pair.sweep, []).append(pair)
    found = (measure(sweep) for sweep in sweeps.values() if len(sweep) >= least)
    return [value for value in found if value is not None]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last: NDArray[np.float64] = np.cumsum(counts).astype(float)
    return (last - (counts - 1) / 2)[inverse]


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
