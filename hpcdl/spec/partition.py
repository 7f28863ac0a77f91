"""Which layers a pipeline stage holds: contiguous, so that the busiest stage has as little as can be.

The last stage also computes the LM head and the loss. Their cost is counted in layers, by forward FLOPs, so a
large vocabulary leaves the last stage fewer layers than the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from math import inf

from hpcdl.spec.model import Model


@lru_cache(maxsize=1024)
def last_layers(model: Model, stages: int) -> int:
    """Layers of the last of ``stages``: at least one, and as many as keep it no busier than the others.

    Of all counts that make the busiest stage equally busy, the largest: it evens out the others.
    """
    head = model.head_forward_flops / model.layer_forward_flops
    if stages == 1:
        return model.layers

    def busiest(last: int) -> float:
        return max(last + head, -(-(model.layers - last) // (stages - 1)))

    return min(range(1, max(1, model.layers - stages + 1) + 1), key=lambda last: (busiest(last), -last))


def stage_layers(model: Model, stages: int, stage: int) -> range:
    """The layers of ``stage`` among ``stages``; what does not divide goes to the early ones.

    Raises:
        ValueError: there are fewer layers than stages.
    """
    if stages > model.layers:
        raise ValueError(f"{model.layers} layers cannot be cut into {stages} stages")
    last = last_layers(model, stages)
    if stage == stages - 1:
        return range(model.layers - last, model.layers)
    base, extra = divmod(model.layers - last, stages - 1)
    first = stage * base + min(stage, extra)
    return range(first, first + base + (stage < extra))


def cut(costs: Sequence[float], stages: int) -> tuple[range, ...]:
    """Contiguous runs of ``costs``, one a stage and none empty, whose sums are as even as can be.

    They have the least sum of squares, by dynamic programming over (stages, end of the run).

    Raises:
        ValueError: there are fewer costs than stages.
    """
    if stages > len(costs):
        raise ValueError(f"{len(costs)} layers cannot be cut into {stages} stages")
    upto = [0.0, *accumulate(costs)]
    best: list[tuple[float, tuple[int, ...]]] = [(total**2, (0,)) for total in upto]
    for stage in range(1, stages):
        best = [
            min(
                ((best[begin][0] + (upto[end] - upto[begin]) ** 2, (*best[begin][1], begin))
                 for begin in range(stage, end)),
                default=(inf, ()),
            )
            for end in range(len(upto))
        ]  # fmt: skip
    begins = best[-1][1]
    return tuple(range(begin, end) for begin, end in pairwise((*begins, len(costs))))
