"""The single changes with which a decomposition would need less memory, smallest first.

Ranks stay as many as they are, so what splits the model further takes replicas from data. A change is smaller
if it costs less of a step as a rule: a smaller microbatch, then optimizer state shared, recomputation, more
ranks a replica (deeper pipelines, z, x), and the host's memory last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any

from pydantic import ValidationError

from hpcdl.planner import memory
from hpcdl.planner.case import Case
from hpcdl.planner.divisors import divisors
from hpcdl.planner.space import RECOMPUTES, Candidates
from hpcdl.spec.decomposition import Decomposition, violations


@dataclass(frozen=True)
class Remedy:
    """A change of a decomposition's fields, and what is needed with it.

    ``need`` is a share of the memory that a plan may use, as ``memory.need``: what fits needs at most 1.
    """

    change: dict[str, Any]
    need: float

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.change.items())

    @property
    def suffices(self) -> bool:
        """Whether the decomposition fits with this change alone."""
        return self.need <= 1


def remedies(case: Case, d: Decomposition) -> tuple[Remedy, ...]:
    """Changes that the case's engine can run and that need less memory than ``d``, smallest first.

    The first that suffices is the smallest change that makes ``d`` fit.
    """
    batch, rules = case.training.global_batch, case.engine.rules
    changed = [(change, other) for change in _changes(case, d) if (other := _changed(d, change))]
    lawful = [(change, other) for change, other in changed if not violations(other, case.model, batch, rules)]
    needs = memory.need(case, Candidates.of(d, *(other for _, other in lawful)))
    found = (Remedy(change, float(need)) for (change, _), need in zip(lawful, needs[1:], strict=True))
    return tuple(remedy for remedy in found if remedy.need < needs[0])


def _changed(d: Decomposition, change: dict[str, Any]) -> Decomposition | None:
    """``d`` with ``change``, or None where its fields contradict each other then."""
    try:
        return Decomposition.model_validate({**d.model_dump(), **change})
    except ValidationError:
        return None


def _changes(case: Case, d: Decomposition) -> Iterator[dict[str, Any]]:
    for smaller in reversed(divisors(d.microbatch)[:-1]):
        yield {"microbatch": smaller}
    if d.data * d.context > 1:
        yield from ({"zero": stage} for stage in range(d.zero + 1, 4))
    for more in RECOMPUTES[RECOMPUTES.index(d.recompute) + 1 :]:
        yield {"recompute": more}
    if d.recompute == "full":
        yield from ({"recompute_every": every} for every in range(2, isqrt(case.model.layers) + 1))
    for factor in divisors(d.data)[1:]:
        yield from (
            {axis: getattr(d, axis) * factor, "data": d.data // factor} for axis in ("pipeline", "z", "x")
        )
    if case.one_memory:
        return
    if d.recompute == "full" and not d.offload_activations:
        yield {"offload_activations": True}
    levels = ("none", "optimizer", "parameters")
    yield from ({"offload": level} for level in levels[levels.index(d.offload) + 1 :])
