"""Rows with what the planner says to them: which may be fitted to, what is compared with what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from measures import Pair, Score, score
from predict import Prediction, predict
from rows import MemoryKind, NotScoredError, Row
from scoring import Question, ask

from hpcdl.planner import memory

Kind = Literal["time"] | MemoryKind
KINDS: tuple[Kind, ...] = ("time", *get_args(MemoryKind))

FITTED = {
    "vtrain_single_node_a100": 2,
    "vtrain_multi_node_a100": 2,
    "bloom_tuning_a100": 3,
    "llm_foundry_mpt": 3,
}
"""Of these files every so-many-th row may be fitted to, beginning with the first; no other row may."""

_SCALARS = (0.4, 1.2)  # between which a site's scalar is looked for
_GOLDEN = (5**0.5 - 1) / 2
_ROUNDS = 11  # of golden-section search: 0.8 · 0.618^11 leaves 0.4 per cent


@dataclass(frozen=True)
class Answer:
    """A row that was asked, and what the planner said."""

    row: Row
    held_out: bool
    prediction: Prediction

    def pair(self, kind: Kind) -> Pair | None:
        """Predicted beside measured ``kind``; None where that was not measured, or the row did not run."""
        question, row = self.prediction.question, self.row
        if row.fits is False:
            return None
        if kind == "time":
            measured = question.measured_seconds
            return Pair(self.prediction.seconds, measured, question.sweep) if measured else None
        if row.memory is None or row.memory_kind != kind:
            return None
        return Pair(self.prediction.gib[kind], row.memory, question.sweep)

    def error(self, kind: Kind) -> float | None:
        """In per cent of what was measured."""
        pair = self.pair(kind)
        return 100 * (pair.predicted / pair.measured - 1) if pair else None

    @property
    def refused(self) -> bool:
        """Whether it ran, though the planner says that it needs more than the device has."""
        return self.row.fits is not False and self.prediction.use > 1

    @property
    def accepted(self) -> bool:
        """Whether it ran out of memory, though the planner says that it fits with the margin free."""
        return self.row.fits is False and self.prediction.use <= 1 - memory.MARGIN


def answer(rows: Iterable[Row]) -> tuple[list[Answer], list[tuple[Row, str]]]:
    """What the planner says to each row, and the rows that cannot be asked, each with the reason."""
    answers, silent = [], []
    places: Counter[str] = Counter()
    for row in rows:
        held_out = row.file not in FITTED or places[row.file] % FITTED[row.file] > 0
        places[row.file] += 1
        try:
            answers.append(Answer(row, held_out, predict(ask(row))))
        except NotScoredError as reason:
            silent.append((row, str(reason)))
    return answers, silent


def score_of(answers: Iterable[Answer], kind: Kind) -> Score | None:
    """The score of ``kind``; None where no row has it."""
    return score([pair for one in answers if (pair := one.pair(kind))])


def with_site_scalar(answers: Sequence[Answer]) -> tuple[float, list[Answer]]:
    """One scalar on GEMM efficiency, fitted to the rows that may be, and the held-out rows with it.

    The scalar is what a site's measured run would give: machines with the same GPU differ by clocks, software
    and neighbours, which no formula knows.
    """
    fitted = [one for one in answers if not one.held_out]

    def error(scalar: float) -> float:
        found = score_of([rescaled(one, scalar) for one in fitted], "time")
        return found.mean if found else 0.0

    best = _golden_section(error, *_SCALARS)
    return best, [rescaled(one, best) for one in answers if one.held_out]


def _golden_section(error: Callable[[float], float], low: float, high: float) -> float:
    """Where ``error``, falling and then rising, is least."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = error(left), error(right)
    for _ in range(_ROUNDS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = error(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = error(right)
    return (low + high) / 2


def rescaled(one: Answer, scalar: float) -> Answer:
    """The same asked of a site that computes ``scalar`` of what the device's profile says."""
    question: Question = one.prediction.question
    profile = question.machine.profile
    slower = profile.model_copy(update={"site_efficiency": scalar})
    return Answer(one.row, one.held_out, predict(question, slower))
