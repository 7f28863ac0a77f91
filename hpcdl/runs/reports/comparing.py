"""Several runs side by side: what was asked differently, and what came of it. Pure."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from hpcdl.runs.reports.contents import numbers
from hpcdl.runs.reports.recorded import Recorded
from hpcdl.spec.experiment import ResolvedRun
from hpcdl.units import format_count, format_seconds, said

Better = Literal["low", "high", ""]
Value = float | str | None


@dataclass(frozen=True)
class Figure:
    """One number of every run.

    Args:
        key: its name in JSON.
        name: its name in words.
        values: one a run; None where it is not known, words where it is not finite.
        unit: what it is a number of: ``s``, ``share``, ``GiB``, ``x`` or nothing.
        better: which end is the best one; empty where none is.
    """

    key: str
    name: str
    values: tuple[Value, ...]
    unit: str = ""
    better: Better = ""

    @property
    def best(self) -> tuple[int, ...]:
        """The places of the best values; none where there is nothing to choose."""
        known = [value for value in self.values if isinstance(value, float | int)]
        if (
            not self.better
            or len(self.values) < 2
            or not known
            or (len(set(known)) == 1 == len(set(self.values)))
        ):
            return ()
        wanted = min(known) if self.better == "low" else max(known)
        return tuple(place for place, value in enumerate(self.values) if value == wanted)

    def words(self) -> tuple[str, ...]:
        """The values as a person reads them."""
        return tuple(_said(value, self.unit) for value in self.values)


def _said(value: Value, unit: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    texts = {
        "s": format_seconds,
        "share": "{:.1%}".format,
        "GiB": "{:.2f} GiB".format,
        "x": "{:.2f} x".format,
    }
    if unit in texts:
        return texts[unit](value)
    return format_count(value) if unit == "count" else f"{value:.5g}"


def differing(runs: Sequence[Recorded]) -> dict[str, list[Any]]:
    """What was asked differently: keys of the experiment, the site and the decomposition, a value a run."""
    asked = [_asked(found) for found in runs]
    keys = dict.fromkeys(key for each in asked for key in each)
    return {
        key: [each.get(key) for each in asked]
        for key in keys
        if any(each.get(key) != asked[0].get(key) for each in asked)
    }


def _asked(found: Recorded) -> dict[str, Any]:
    run = found.run
    flat = dict(_flat(run.experiment.model_dump(mode="json"), ""))
    chosen = {"decomposition": str(run.decomposition)} if isinstance(run, ResolvedRun) else {}
    return flat | {"site": run.site, "ranks": run.layout.ranks} | chosen


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value


def figures(runs: Sequence[Recorded]) -> list[Figure]:
    """What came of the runs."""
    found = [numbers(each) for each in runs]
    steps = min(each["step"] or 0 for each in found)
    tokens = min(each["tokens"] or 0 for each in found)

    def told(key: str) -> tuple[Value, ...]:
        return tuple(each[key] for each in found)

    compared = [
        Figure("state", "state", tuple(each.attempt.state.value for each in runs)),
        Figure("step", "steps", told("step")),
        Figure("last_loss", "final loss", told("last_loss"), better="low"),
        Figure("validation_loss", "validation loss", told("validation_loss"), better="low"),
        Figure(
            "loss_at_step",
            f"loss at step {steps}",
            tuple(_loss_at(each, steps) for each in runs),
            better="low",
        ),
        Figure(
            "loss_at_tokens",
            f"loss after {format_count(tokens)} tokens",
            tuple(_loss_after(each, tokens) for each in runs),
            better="low",
        ),
        Figure("tokens_per_second", "tokens/s", told("tokens_per_second"), "count", "high"),
        Figure("mfu", "MFU", told("mfu"), "share", "high"),
        Figure("step_seconds", "a step", told("step_seconds"), "s", "low"),
        Figure("planned_step_seconds", "a step, planned", told("planned_step_seconds"), "s"),
        Figure("step_over_plan", "step / planned", tuple(map(_over_plan, found)), "x"),
        Figure("memory_gib", "memory of the fullest rank", told("memory_gib"), "GiB", "low"),
        Figure("training_seconds", "time in steps", told("training_seconds"), "s"),
        Figure("node_hours", "node-hours", told("node_hours"), better="low"),
        Figure("attempts", "attempts", told("attempts")),
    ]
    return [figure for figure in compared if any(value is not None for value in figure.values)]


def _over_plan(found: dict[str, Any]) -> float | None:
    measured, planned = found["step_seconds"], found["planned_step_seconds"]
    return measured / planned if measured and planned else None


def _loss_at(found: Recorded, step: int) -> Value:
    """The loss at a step that the run has recorded."""
    place = bisect_left(found.columns.step, step)
    if step == 0 or place == len(found.columns) or found.columns.step[place] != step:
        return None
    return said(found.columns.numbers["loss"][place])


def _loss_after(found: Recorded, tokens: float) -> Value:
    """The loss of the first step after which so many tokens had been seen."""
    seen = list(accumulate(found.columns.numbers["tokens"]))
    place = bisect_left(seen, tokens)
    return said(found.columns.numbers["loss"][place]) if tokens and place < len(seen) else None


def written(value: Any) -> str:
    """A value of an experiment in one line, as YAML would take it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
