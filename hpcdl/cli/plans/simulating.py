"""``hpcdl plan --simulate``: the step as a distribution, where ranks vary, are slow, or pause."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import Any

from hpcdl.cli import render
from hpcdl.cli.render import Row
from hpcdl.errors import UsageError
from hpcdl.planner.disturbance import Disturbance
from hpcdl.planner.plan import Plan
from hpcdl.planner.rank import Candidate
from hpcdl.planner.replicas import StepTimes
from hpcdl.planner.simulation import simulate_steps
from hpcdl.units import format_seconds

_FIELDS = {
    "jitter": ("jitter",),
    "slow": ("slow_share", "slow_factor"),
    "pause": ("pause_rate", "pause_seconds"),
    "steps": ("steps",),
    "seed": ("seed",),
}
_FORM = (
    "write for example jitter=0.05,slow=0.001:1.3,pause=0.001:0.5,steps=200,seed=0, or a part of it: how "
    "much an operation varies, the share of slow ranks and their factor, pauses a second and their length"
)
_PERCENT = (5, 50, 95, 99)


@dataclass(frozen=True)
class Simulation:
    """What is simulated."""

    disturbance: Disturbance
    steps: int = 100
    seed: int = 0

    def show(self, plan: Plan, candidate: Candidate) -> None:
        """Simulate, and print the distribution."""
        with render.busy("simulating"):
            times = self.run(plan, candidate)
        table(candidate, times)

    def run(self, plan: Plan, candidate: Candidate) -> StepTimes:
        """Steps of one candidate.

        Raises:
            InfeasibleError: it breaks a rule.
            UsageError: what cannot be simulated.
        """
        d = candidate.decomposition
        return simulate_steps(plan.case, d, self.disturbance, self.steps, self.seed)

    def to_json(self, times: StepTimes) -> dict[str, Any]:
        """What was simulated, and what came of it."""
        return {**asdict(self.disturbance), "seed": self.seed, **times.to_json()}


def simulation(text: str) -> Simulation:
    """``jitter=0.05,slow=0.001:1.3,pause=0.001:0.5,steps=200,seed=0``, or a part of it.

    Raises:
        UsageError: an unknown key, or a value that makes no sense.
    """
    numbers: dict[str, float] = {}
    for part in text.split(","):
        name, _, values = (word.strip() for word in part.partition("="))
        if name not in _FIELDS:
            close = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.4)
            advice = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"--simulate {text}: there is no key {name!r}{advice}", _FORM)
        fields, words = _FIELDS[name], values.split(":")
        if len(words) != len(fields):
            raise UsageError(f"--simulate {text}: {part.strip()!r} is not {name}={':'.join(fields)}", _FORM)
        numbers |= {field: _number(text, field, word) for field, word in zip(fields, words, strict=True)}
    whole = {name: int(numbers.pop(name)) for name in ("steps", "seed") if name in numbers}
    return Simulation(Disturbance(**numbers), **whole)


def _number(text: str, field: str, word: str) -> float:
    try:
        return int(word) if field in ("steps", "seed") else float(word)
    except ValueError:
        raise UsageError(f"--simulate {text}: {field} {word!r} is not a number", _FORM) from None


def table(candidate: Candidate, times: StepTimes) -> None:
    """Quantiles, and what the tail costs."""
    steps, pipelines = len(times.samples), candidate.decomposition.data
    beside = f", each the slowest of {pipelines} pipelines" if pipelines > 1 else ""
    render.line(f"\n[bold]rank {candidate.rank} of the plan, disturbed[/]: {steps} steps simulated{beside}")
    found = {"undisturbed": times.undisturbed, "mean": times.mean}
    found |= {f"p{percent}": times.quantile(percent / 100) for percent in _PERCENT}
    rows = [
        Row([name, format_seconds(seconds), _more(seconds, times.undisturbed)])
        for name, seconds in found.items()
    ]
    render.table({"": "left", "step": "right", "longer": "right"}, rows)
    tail = times.quantile(0.95) / times.quantile(0.5) - 1
    render.plain(
        f"one step in twenty takes {tail:.1%} longer than the median, or more",
        "yellow" if tail > 0.1 else "",
    )
    static = float(times.in_order.mean())
    render.plain(
        f"did every rank keep a fixed order, the mean would be {format_seconds(static)} "
        f"({_more(static, times.mean)})"
    )


def _more(seconds: float, base: float) -> str:
    return f"{seconds / base - 1:+.1%}"
