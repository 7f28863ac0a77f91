"""The learning rate: linear warm-up, then a cosine."""

from __future__ import annotations

import math

from hpcdl.spec.training import Optimizer


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """The rate of ``step`` (the first is 1) of ``steps``.

    It rises linearly to ``lr`` over ``warmup`` steps and then follows half a cosine down to
    ``lr · min_lr_ratio`` at the last step (Loshchilov and Hutter, 2017, without restarts).
    """
    if step <= settings.warmup:
        return settings.lr * step / settings.warmup
    decay_steps = max(1, steps - settings.warmup)
    share = min(1.0, (step - settings.warmup) / decay_steps)
    lowest = settings.lr * settings.min_lr_ratio
    return lowest + (settings.lr - lowest) * 0.5 * (1 + math.cos(math.pi * share))
