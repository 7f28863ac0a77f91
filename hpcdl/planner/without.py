"""What saving memory made possible: the choice there would be without offload, or without pruning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpcdl.planner import memory
from hpcdl.planner.case import Case
from hpcdl.planner.choices import judge
from hpcdl.planner.divisors import factorisations
from hpcdl.planner.estimate import least_step
from hpcdl.planner.rank import Candidate, Pool
from hpcdl.planner.search import Search
from hpcdl.planner.space import OFFLOADS, Candidates, Floats, Ints
from hpcdl.spec.decomposition import Decomposition


@dataclass(frozen=True)
class Without:
    """What is left without one way of saving memory."""

    same: Candidate  # the chosen decomposition, whether it fits or not
    fits: bool
    shallowest: Candidate | None  # with its tensor axes and microbatch, the shortest pipeline that fits
    fastest: Candidate | None  # of all that fit

    def to_json(self) -> dict[str, Any]:
        """Plain values under documented names."""
        others = {name: getattr(self, name) for name in ("shallowest", "fastest")}
        return {
            "needs_gib": self.same.memory_gib,
            "fits": self.fits,
            **{name: one and one.to_json() for name, one in others.items()},
        }


def savings(case: Case, chosen: Decomposition, *, alike_only: bool = False) -> dict[str, Without]:
    """By "offload" and "pruning", as far as ``chosen`` uses them, what is left without.

    Args:
        case: what is trained, and where.
        chosen: what is to run.
        alike_only: whether what differs from it in more than data and pipeline is no choice.
    """
    return {
        name: _without(other, plain, alike_only=alike_only) for name, other, plain in _plainer(case, chosen)
    }


def _plainer(case: Case, chosen: Decomposition) -> Iterator[tuple[str, Case, Decomposition]]:
    if chosen.offload != "none" or chosen.offload_activations:
        held = {"offload": "none", "offload_activations": False}
        yield "offload", case, chosen.model_copy(update=held)
    if case.training.pruning:
        dense = case.training.model_copy(update={"pruning": None})
        yield "pruning", replace(case, training=dense), chosen


def _without(case: Case, chosen: Decomposition, *, alike_only: bool) -> Without:
    one = Candidates.of(chosen)
    alike = _alike(case, chosen)
    alike = alike.take(memory.fits(case, alike))
    return Without(
        same=Pool(case, one).pick(np.array([0]), [0])[0],
        fits=bool(memory.fits(case, one)[0]),
        shallowest=_first(case, alike, alike.pipeline),
        fastest=_first(case, alike, least_step(case, alike)) if alike_only else _fastest(case, chosen),
    )


def _alike(case: Case, chosen: Decomposition) -> Candidates:
    """What differs from it in data and pipeline alone, and keeps the rules.

    As many microbatches are in flight as keep each pipeline busy.
    """
    data, pipeline = factorisations(chosen.data * chosen.pipeline, 2).T
    same = Candidates.of(chosen).take(np.zeros(len(data), dtype=np.int64))
    same = same.having(data=data, pipeline=pipeline, asked_in_flight=0)
    return same.take(judge(same, case.model, case.training.global_batch, case.engine)[0])


def _first(case: Case, candidates: Candidates, keys: Floats | Ints) -> Candidate | None:
    if not len(candidates):
        return None
    return Pool(case, candidates).pick(np.argsort(keys, kind="stable"), [0])[0]


def _fastest(case: Case, chosen: Decomposition) -> Candidate | None:
    """Of all there is to choose from, with as much offloaded."""
    level = OFFLOADS.index(chosen.offload)
    search = Search.through(case, 1, (level,), activations=chosen.offload_activations)
    return _first(case, search.leaders.candidates, search.leaders.seconds)
