"""Two plans side by side: what the better one gains, term by term."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hpcdl.planner.question import Outcome


class Change(NamedTuple):
    """One figure on both sides; None where a side has none."""

    name: str
    before: float | None
    after: float | None

    @property
    def difference(self) -> float:
        """After less before."""
        return (self.after or 0.0) - (self.before or 0.0)


@dataclass(frozen=True)
class Comparison:
    """Two outcomes and what they are called."""

    names: tuple[str, str]
    outcomes: tuple[Outcome, Outcome]

    @property
    def speedup(self) -> float | None:
        """Tokens a second of the second, as a multiple of the first's; None unless both can run."""
        before, after = (outcome.best for outcome in self.outcomes)
        return after.tokens_per_second / before.tokens_per_second if before and after else None

    @property
    def figures(self) -> tuple[Change, ...]:
        """What a candidate is judged by."""
        names = (
            "step_seconds",
            "tokens_per_second",
            "tflops_per_gpu",
            "mfu",
            "memory_gib",
            "host_memory_gib",
        )
        before, after = (outcome.best for outcome in self.outcomes)
        return tuple(Change(name, getattr(before, name, None), getattr(after, name, None)) for name in names)

    @property
    def seconds(self) -> tuple[Change, ...]:
        """Terms of the step that either side has."""
        return tuple(self._terms("breakdown"))

    @property
    def gib(self) -> tuple[Change, ...]:
        """Terms of the device's memory that either side has."""
        return tuple(self._terms("memory_breakdown"))

    def _terms(self, breakdown: str) -> Iterator[Change]:
        before, after = (_breakdown(outcome, breakdown) for outcome in self.outcomes)
        for name in dict.fromkeys([*before, *after]):
            if before.get(name) or after.get(name):
                yield Change(name, before.get(name), after.get(name))

    def to_json(self) -> dict[str, Any]:
        """The object that ``hpcdl plan --compare`` and ``--what-if`` print with ``--json``."""
        return {
            "names": list(self.names),
            "plans": [_json(outcome) for outcome in self.outcomes],
            "speedup": self.speedup,
            "breakdown": _differences(self.seconds),
            "memory_breakdown": _differences(self.gib),
        }


def _breakdown(outcome: Outcome, name: str) -> Mapping[str, float]:
    return getattr(outcome.best, name) if outcome.best else {}


def _json(outcome: Outcome) -> dict[str, Any]:
    reason = outcome.refusal.message if outcome.refusal else None
    plan = outcome.plan.to_json() if outcome.plan else None
    return {"gpus": outcome.gpus, "runs": outcome.best is not None, "reason": reason, "plan": plan}


def _differences(changes: tuple[Change, ...]) -> dict[str, dict[str, float | None]]:
    return {
        change.name: {"before": change.before, "after": change.after, "difference": change.difference}
        for change in changes
    }
