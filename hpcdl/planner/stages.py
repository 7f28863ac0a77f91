"""How many layers the ranks of a pipeline hold, by the engine that cuts them."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hpcdl.planner.case import Case
from hpcdl.planner.engines import Engine
from hpcdl.planner.space import Candidates, Ints
from hpcdl.spec.model import Model
from hpcdl.spec.partition import stage_layers


class Stages(NamedTuple):
    """Layers of the first rank, of the fullest between, and of the last, over all their virtual stages."""

    first: Ints
    inner: Ints  # 0 where there is none
    last: Ints


def layers_of_ranks(case: Case, c: Candidates) -> Stages:
    """Those of every candidate."""
    chunks = int(c.interleave.max(initial=1)) + 1
    keys = c.pipeline * chunks + c.interleave
    present = np.zeros(int(keys.max(initial=0)) + 1, dtype=np.bool_)
    present[keys] = True
    found = np.zeros((3, len(present)), dtype=np.int64)
    for key in np.flatnonzero(present):
        found[:, key] = _of_ranks(case, *divmod(int(key), chunks))
    return Stages(*(column[keys] for column in found))


@lru_cache(maxsize=4096)
def layer_counts(model: Model, engine: Engine, stages: int) -> tuple[int, ...]:
    """Layers of every stage.

    hpcdl's engine evens out forward FLOPs (``spec.partition``). Others cut evenly; where that leaves a rest
    they count embedding and head as a layer each if this divides, and else give the rest to the early stages.
    """
    if not engine.tables:
        stages = min(stages, model.layers)  # more are refused, but still shown with an estimate
        return tuple(len(stage_layers(model, stages, stage)) for stage in range(stages))
    return _evenly(model, stages)


@lru_cache(maxsize=4096)
def held_by_ranks(model: Model, engine: Engine, ranks: int, chunks: int) -> tuple[int, ...]:
    """Layers of every rank, over all its virtual stages."""
    counts = layer_counts(model, engine, ranks * chunks)
    return tuple(sum(counts[rank::ranks]) for rank in range(ranks))


def _evenly(model: Model, stages: int) -> tuple[int, ...]:
    each, rest = divmod(model.layers + 2, stages)
    if stages > 1 and model.layers % stages and not rest:
        return (each - 1, *[each] * (stages - 2), each - 1)
    each, rest = divmod(model.layers, stages)
    return tuple(each + (stage < rest) for stage in range(stages))


def _of_ranks(case: Case, ranks: int, chunks: int) -> tuple[int, int, int]:
    held = held_by_ranks(case.model, case.engine, ranks, chunks)
    inner = max(held[1:-1], default=0) if case.engine.tables else 0
    return held[0], inner, held[-1]  # hpcdl's engine gives no rank more than the first
