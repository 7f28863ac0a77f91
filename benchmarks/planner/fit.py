"""Fits numbers of the shipped profiles to those rows that may be fitted to, and prints them.

Coordinate descent on the mean absolute error of the logarithm of step times, both tables alike: one number at
a time is multiplied or divided by a factor while that helps, and the factor shrinks. A row further off than
30 % counts as 30 %, as some ran at the edge of memory. Each number stays within bounds that physics gives.

usage: python benchmarks/planner/fit.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from answers import FITTED
from predict import case_of
from rows import MEASURED, read_rows
from scoring import NotScoredError, Question, ask

from hpcdl.planner.case import Case
from hpcdl.planner.estimate import step_tree

Bounds = dict[str, tuple[float, float]]


class Fit(NamedTuple):
    """Some numbers of one device's profile, and the tables that they follow from."""

    device: str
    files: tuple[str, ...]
    bounds: Bounds


FITS = (
    Fit(
        "A100",
        ("vtrain_single_node_a100", "vtrain_multi_node_a100"),
        {
            "gemm_efficiency": (
                0.70,
                0.87,
            ),  # measured: 0.75 of large products (SimuMax), 0.869 at best (MAMF)
            "memory_efficiency": (0.75, 0.92),  # copies of large arrays reach nine tenths
            "score_efficiency": (0.30, 0.92),
            "kernel_launch_s": (1e-6, 10e-6),  # a launch takes microseconds
            "host_floor_s": (0.3e-3, 2e-3),
            "step_overhead_s": (1e-3, 50e-3),
        },
    ),
    # What training reaches is less than the best matmul, 0.80, as power limits the clock.
    Fit("H100", ("llm_foundry_mpt",), {"gemm_efficiency": (0.55, 0.80), "memory_efficiency": (0.60, 0.92)}),
)
_WORST = 0.3
_FACTORS = (1.15, 1.07, 1.035, 1.017)

Numbers = dict[str, float]


@dataclass(frozen=True)
class Asked:
    """One row: what the planner is asked, and the seconds that were measured."""

    case: Case
    question: Question
    seconds: float

    def error(self, numbers: Numbers) -> float:
        """Logarithm of predicted over measured, with the pipeline in closed form."""
        profile = self.case.profile.model_copy(update=numbers)
        choice = self.question.choices.having(asked_in_flight=0)
        seconds = step_tree(replace(self.case, profile=profile), choice).value.min()
        return float(np.log(seconds / self.seconds))


def main() -> None:
    """Fit each, one after the other."""
    for fit in FITS:
        _report(fit)


def _report(fit: Fit) -> None:
    """Fit, print, and print the errors of the rows that were fitted to and of the others."""
    parts = {
        held_out: [_asked(fit, file, held_out=held_out) for file in fit.files] for held_out in (False, True)
    }
    found = descend(lambda numbers: _loss(parts[False], numbers), fit.bounds)
    for name, value in found.items():
        print(f"{fit.device}: {name} {value:.4g}")
    for held_out, tables in parts.items():
        for file, rows in zip(fit.files, tables, strict=True):
            off = np.abs(np.expm1([row.error(found) for row in rows]))
            part = "held out" if held_out else "fitted"
            print(f"{file}, {part}: mean {off.mean():.1%}, median {np.median(off):.1%}, {len(off)} rows")


def descend(loss: Callable[[Numbers], float], bounds: Bounds) -> Numbers:
    """Numbers within ``bounds`` where ``loss`` is least as far as one at a time shows, from their middle."""
    best = {name: (low * high) ** 0.5 for name, (low, high) in bounds.items()}
    least = loss(best)
    for factor in _FACTORS:
        for name, (low, high) in bounds.items():
            for step in (factor, 1 / factor):
                while True:
                    tried = {**best, name: min(high, max(low, best[name] * step))}
                    found = loss(tried)
                    if found >= least - 1e-7:
                        break
                    best, least = tried, found
    return best


def _loss(tables: list[list[Asked]], numbers: Numbers) -> float:
    means = [np.mean([min(_WORST, abs(row.error(numbers))) for row in rows]) for rows in tables]
    return float(np.mean(means))


def _asked(fit: Fit, file: str, *, held_out: bool) -> list[Asked]:
    found = []
    for place, row in enumerate(read_rows(MEASURED, file)[0]):
        if fit.device not in row.gpu_type or (place % FITTED[file] > 0) != held_out:
            continue
        try:
            question = ask(row)
        except NotScoredError:
            continue
        if question.measured_seconds:
            case = case_of(question, question.machine.profile)
            found.append(Asked(case, question, question.measured_seconds))
    return found


if __name__ == "__main__":
    main()
