"""What saving memory made possible: the choice there would be without offload, or without pruning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpcdl.planner import memory
from hpcdl.planner.case import Case
from hpcdl.planner.estimate import step_tree
from hpcdl.planner.rank import Candidate, Pool, order
from hpcdl.planner.space import Bools, Candidates
from hpcdl.spec.decomposition import Decomposition

_SAME = ("x", "y", "z", "microbatch", "full_recompute")
_UNSEARCHED = (
    "context", "expert", "interleave", "recomputed", "recompute_every", "zero", "sequence_parallel",
    "defer_weights", "ordered",
)  # fmt: skip


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


def savings(case: Case, chosen: Decomposition, rivals: Candidates) -> dict[str, Without]:
    """By "offload" and "pruning", as far as ``chosen`` uses them, what is left without.

    Args:
        case: what is trained, and where.
        chosen: what is to run.
        rivals: what else there is; what they offload does not matter.
    """
    return {name: _without(other, plain, rivals) for name, other, plain in _plainer(case, chosen)}


def related(chosen: Decomposition, candidates: Candidates) -> Candidates:
    """Those with the tensor axes, microbatch and recomputation of ``chosen``, and what is not searched.

    As many microbatches are in flight as keep each pipeline busy.
    """
    one = Candidates.of(chosen)
    unsearched = {name: getattr(one, name) for name in _UNSEARCHED}
    return candidates.take(_alike(one, candidates)).having(**unsearched)


def _plainer(case: Case, chosen: Decomposition) -> Iterator[tuple[str, Case, Decomposition]]:
    if chosen.offload != "none" or chosen.offload_activations:
        held = {"offload": "none", "offload_activations": False}
        yield "offload", case, chosen.model_copy(update=held)
    if case.training.pruning:
        dense = case.training.model_copy(update={"pruning": None})
        yield "pruning", replace(case, training=dense), chosen


def _without(case: Case, chosen: Decomposition, rivals: Candidates) -> Without:
    one = Candidates.of(chosen)
    level, activations = int(one.offloaded[0]), chosen.offload_activations
    if activations:
        rivals = rivals.take(rivals.full_recompute)
    others = rivals.offloading(level, activations=activations)
    others = others.take(memory.fits(case, others))
    return Without(
        same=Pool(case, one).pick(np.array([0]), [0])[0],
        fits=bool(memory.fits(case, one)[0]),
        shallowest=_shallowest(case, others.take(_alike(one, others))),
        fastest=_fastest(case, others),
    )


def _alike(one: Candidates, others: Candidates) -> Bools:
    equal = [getattr(others, name) == getattr(one, name)[0] for name in _SAME]
    verdict: Bools = np.all(equal, axis=0)
    return verdict


def _shallowest(case: Case, candidates: Candidates) -> Candidate | None:
    if not len(candidates):
        return None
    return Pool(case, candidates).pick(np.argsort(candidates.pipeline, kind="stable"), [0])[0]


def _fastest(case: Case, candidates: Candidates) -> Candidate | None:
    if not len(candidates):
        return None
    return Pool(case, candidates).pick(order(candidates, step_tree(case, candidates).value), [0])[0]
