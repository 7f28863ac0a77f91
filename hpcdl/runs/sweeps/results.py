"""What the points of a sweep came to: one record a point, the best one known."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics, store
from hpcdl.runs.record import Attempt, up_to
from hpcdl.runs.spending import node_hours
from hpcdl.runs.sweeps.groups import Group

NUMBERS = (
    "step", "steps", "first_loss", "last_loss", "best_loss", "validation_loss", "tokens_per_second", "mfu",
    "node_hours",
)  # fmt: skip
"""What is known of a point beside its values, in numbers; None where it is not."""


@dataclass(frozen=True)
class Result:
    """One point.

    Args:
        run: its id.
        values: swept key → value.
        state: of its newest attempt.
        numbers: a value for each of ``NUMBERS``.
    """

    run: str
    values: Mapping[str, Any]
    state: str
    numbers: Mapping[str, float | None]

    def of(self, key: str) -> Any:
        """A value or a number of the point, by its name."""
        return self.values[key] if key in self.values else self.numbers[key]


def results(group: Group, newest: Sequence[Attempt]) -> list[Result]:
    """Every point of a group whose run is still there, in the order of the sweep.

    Args:
        group: the sweep.
        newest: attempt of each of those runs, as it stands.
    """
    known = zip(group.folders, newest, strict=True)
    return [_result(folder, group.points[folder.path.name], attempt) for folder, attempt in known]


def _result(folder: RunFolder, values: Mapping[str, Any], newest: Attempt) -> Result:
    history = up_to(newest, store.history(folder))
    run, records = store.resolved(folder), metrics.steps(folder)
    done = metrics.progress(records)
    losses = [record.loss for record in records if math.isfinite(record.loss)]
    told = {
        "step": done.step if run.experiment.steps else None,
        "steps": run.experiment.steps,
        "first_loss": done.first_loss,
        "last_loss": done.last_loss,
        "best_loss": min(losses, default=None),
        "validation_loss": done.validation_loss,
        "tokens_per_second": done.tokens_per_second,
        "mfu": done.mfu,
        "node_hours": node_hours(folder, history, time.time()),
    }
    return Result(folder.path.name, values, newest.state.value, told)


def loss_key(found: Sequence[Result]) -> str:
    """The loss by which points are compared: on held-out data where there is some, else the last step's."""
    evaluated = any(result.numbers["validation_loss"] is not None for result in found)
    return "validation_loss" if evaluated else "last_loss"


def best(found: Sequence[Result]) -> Result | None:
    """The point with the lowest loss; None if none has one."""
    key = loss_key(found)
    known = [result for result in found if _is_finite(result.numbers[key])]
    return min(known, key=lambda result: result.numbers[key] or 0.0, default=None)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def ordered(found: Sequence[Result], key: str) -> list[Result]:
    """Points by a value or a number, lowest first; those that have none, or no finite one, come last."""

    def place(result: Result) -> tuple[int, float, str]:
        value = result.of(key)
        if isinstance(value, int | float) and math.isfinite(value):
            return (0, value, "")
        return (2, 0.0, "") if value is None or isinstance(value, float) else (1, 0.0, str(value))

    return sorted(found, key=place)
