"""Several numbers of devices at once: what each would cost, and which of them is worth its node-hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpcdl.errors import UsageError
from hpcdl.planner.question import Outcome, Question
from hpcdl.planner.search import Watch

_BILLION = 1e9


@dataclass(frozen=True)
class Point:
    """One number of devices: its best decomposition and what that costs."""

    outcome: Outcome
    efficiency: float = 0.0  # tokens/s a device, as a share of those of the fewest devices that can run
    front: bool = False  # no other is faster for as few node-hours

    @property
    def gpus(self) -> int:
        """Devices."""
        return self.outcome.gpus

    @property
    def interrupted(self) -> bool:
        """Whether its search was stopped: it is the best so far."""
        return self.outcome.plan is not None and self.outcome.plan.interrupted

    @property
    def runs(self) -> bool:
        """Whether anything can run."""
        return self.outcome.best is not None

    @property
    def nodes(self) -> int:
        """Nodes they lie on; 0 where nothing can run."""
        return self.outcome.plan.layout.nodes if self.outcome.plan and self.runs else 0

    @property
    def tokens_per_second(self) -> float:
        """Of the best; 0 where nothing can run."""
        return self.outcome.best.tokens_per_second if self.outcome.best else 0.0

    def hours(self, tokens: float) -> float:
        """Time to so many tokens."""
        return tokens / self.tokens_per_second / 3600

    def node_hours(self, tokens: float) -> float:
        """Nodes held for that time."""
        return self.nodes * self.hours(tokens)

    def to_json(self, tokens: float | None) -> dict[str, Any]:
        """Plain values under documented names; null where nothing can run."""
        best, refusal = self.outcome.best, self.outcome.refusal
        words = None if refusal is None else " ".join(filter(None, (refusal.message, refusal.hint)))
        row: dict[str, Any] = {
            "gpus": self.gpus,
            "runs": self.runs,
            "interrupted": self.interrupted,
            "reason": words,
        }
        if best is None:
            return {**row, **dict.fromkeys(_FIGURES), "front": False, "best": None}
        figures = (
            self.nodes,
            best.step_seconds,
            best.tokens_per_second * 86400,
            self.efficiency,
            self.nodes * best.step_seconds / 3600,
            self.node_hours(_BILLION),
            tokens and self.hours(tokens),
            tokens and self.node_hours(tokens),
        )
        return {
            **row,
            **dict(zip(_FIGURES, figures, strict=True)),
            "front": self.front,
            "best": best.to_json(),
        }


_FIGURES = (
    "nodes", "step_seconds", "tokens_per_day", "efficiency", "node_hours_per_step",
    "node_hours_per_billion_tokens", "hours_to_tokens", "node_hours_to_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Scaling:
    """Points from the fewest devices on; ``weak`` where the batch grew with them."""

    points: tuple[Point, ...]
    weak: bool = False
    tokens: float | None = None  # to be trained on

    @property
    def running(self) -> tuple[Point, ...]:
        """Those that can run."""
        return tuple(point for point in self.points if point.runs)

    def to_json(self) -> dict[str, Any]:
        """The object that ``hpcdl plan --gpus N,N --json`` prints."""
        return {
            "scaling": "weak" if self.weak else "strong",
            "tokens": self.tokens,
            "points": [point.to_json(self.tokens) for point in self.points],
        }


def scaling(
    question: Question,
    gpus: Sequence[int],
    *,
    weak: bool = False,
    tokens: float | None = None,
    watch: Watch | None = None,
) -> Scaling:
    """Ask ``question`` for each of several numbers of devices, ascending.

    Args:
        question: what is trained, and where. Its global batch is that of every point.
        gpus: numbers of devices.
        weak: let the global batch be that of the first number and grow with the devices.
        tokens: how many the model is to be trained on.
        watch: told how many parts of how many are done. Ctrl-C then ends the search, with the best so far.

    Raises:
        UsageError: a grown batch would not be whole.
    """
    asked = [_grown(question, count, gpus[0]) if weak else question for count in gpus]
    points: list[Point] = []
    for each, count in zip(asked, gpus, strict=True):
        points.append(Point(each.ask(count, _part(watch, len(points), len(gpus)))))
        if points[-1].interrupted:
            break
        if watch:
            watch(len(points), len(gpus))
    return Scaling(tuple(_on_the_front(_with_efficiency(points))), weak, tokens)


def _part(watch: Watch | None, place: int, of: int) -> Watch | None:
    """What is told of one search, told as a part of several."""
    return watch and (lambda done, total: watch(place * total + done, of * total))


def _grown(question: Question, gpus: int, first: int) -> Question:
    training = question.experiment.training
    batch, rest = divmod(training.global_batch * gpus, first)
    if rest:
        raise UsageError(
            f"--weak: a global batch of {training.global_batch} on {first} devices is "
            f"{training.global_batch * gpus / first:g} on {gpus}, which is not whole",
            "choose numbers of devices that are multiples of the first",
        )
    changed = training.model_copy(update={"global_batch": batch})
    return replace(question, experiment=question.experiment.model_copy(update={"training": changed}))


def _with_efficiency(points: Sequence[Point]) -> list[Point]:
    running = [point for point in points if point.runs]
    if not running:
        return list(points)
    base = running[0].tokens_per_second / running[0].gpus
    return [replace(point, efficiency=point.tokens_per_second / point.gpus / base) for point in points]


def _on_the_front(points: Sequence[Point]) -> list[Point]:
    running = [point for point in points if point.runs]
    return [replace(point, front=point.runs and not _beaten(point, running)) for point in points]


def _beaten(point: Point, others: Sequence[Point]) -> bool:
    """Whether another is at least as fast for at most as many node-hours, and better in one."""
    own = point.hours(1), point.node_hours(1)
    rivals = ((other.hours(1), other.node_hours(1)) for other in others)
    return any(rival != own and rival[0] <= own[0] and rival[1] <= own[1] for rival in rivals)
