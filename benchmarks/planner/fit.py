"""Fits the A100's profile to those rows of vTrain's step times that may be fitted to, and prints it.

Coordinate descent on the mean absolute error of the logarithm of step times, both tables alike: one number at
a time is multiplied or divided by a factor while that helps, and the factor shrinks. A row further off than
30 % counts as 30 %, as some ran at the edge of memory. Each number stays within bounds that physics gives.

usage: python benchmarks/planner/fit.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from answers import FITTED
from predict import case_of
from rows import MEASURED, read_rows
from scoring import NotScoredError, Question, ask

from hpcdl.planner.case import Case
from hpcdl.planner.estimate import step_tree
from hpcdl.sites.profile import default_profile

FILES = ("vtrain_single_node_a100", "vtrain_multi_node_a100")
BOUNDS = {
    "gemm_efficiency": (0.70, 0.87),  # measured: 0.75 of large products (SimuMax), 0.869 at best (MAMF)
    "memory_efficiency": (0.75, 0.92),  # copies of large arrays reach nine tenths
    "score_efficiency": (0.30, 0.92),
    "kernel_launch_s": (1e-6, 10e-6),  # a launch takes microseconds
    "host_floor_s": (0.3e-3, 2e-3),
    "step_overhead_s": (1e-3, 50e-3),
}
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
        seconds = step_tree(replace(self.case, profile=profile), choice).value[0]
        return float(np.log(seconds / self.seconds))


def main() -> None:
    """Fit, print, and print the errors of both halves."""
    halves = {held_out: [_asked(file, held_out=held_out) for file in FILES] for held_out in (False, True)}
    found = descend(lambda numbers: _loss(halves[False], numbers), BOUNDS)
    for name, value in found.items():
        print(f"{name} {value:.4g}")
    for held_out, tables in halves.items():
        for file, rows in zip(FILES, tables, strict=True):
            off = np.abs(np.expm1([row.error(found) for row in rows]))
            part = "held out" if held_out else "fitted"
            print(f"{file}, {part}: mean {off.mean():.1%}, median {np.median(off):.1%}, {len(off)} rows")


def descend(loss: Callable[[Numbers], float], bounds: dict[str, tuple[float, float]]) -> Numbers:
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


def _asked(file: str, *, held_out: bool) -> list[Asked]:
    found = []
    for place, row in enumerate(read_rows(MEASURED, file)[0]):
        if (place % FITTED[file] > 0) != held_out:
            continue
        try:
            question = ask(row)
        except NotScoredError:
            continue
        if question.measured_seconds:
            case = case_of(question, default_profile(question.machine.node.device))
            found.append(Asked(case, question, question.measured_seconds))
    return found


if __name__ == "__main__":
    main()
