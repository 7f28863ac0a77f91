"""Which layers a pipeline stage holds: contiguous, so that the busiest stage has as little as can be.

The last stage also computes the LM head and the loss. Their cost is counted in layers, by forward FLOPs, so a
large vocabulary leaves the last stage fewer layers than the others.
"""

from __future__ import annotations

from functools import lru_cache

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
