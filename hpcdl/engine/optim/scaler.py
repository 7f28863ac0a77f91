"""Dynamic loss scaling, which keeps small gradients from vanishing in fp16."""

from __future__ import annotations

from hpcdl.errors import EngineError
from hpcdl.spec.training import LossScale

PATIENCE = 20
"""Overflows in a row at the smallest scale after which training is given up."""


class Scaler:
    """The factor on the loss; the same on all ranks, because all are told the same.

    The rule is AxoNN's (Singh and Bhatele, IPDPS 2022): half after an overflow, double after a window of
    steps without one (Micikevicius et al., ICLR 2018).
    """

    def __init__(self, settings: LossScale) -> None:
        self._settings = settings
        self.factor = settings.initial
        self._clean = 0  # steps since the factor changed
        self._stuck = 0  # overflows in a row at the smallest factor

    def clean(self) -> None:
        """A step had finite gradients."""
        self._stuck = 0
        self._clean += 1
        if self._clean >= self._settings.window:
            self.factor = min(self.factor * 2, self._settings.largest)
            self._clean = 0

    def overflow(self, step: int) -> None:
        """The gradients of a step overflowed.

        Raises:
            EngineError: they do so however small the factor is.
        """
        self._clean = 0
        self._stuck = self._stuck + 1 if self.factor <= self._settings.smallest else 0
        if self._stuck >= PATIENCE:
            raise EngineError(
                f"fp16 gradients overflowed in {PATIENCE} steps in a row up to step {step}, although "
                f"training.loss_scale is at its smallest, {self._settings.smallest:g}",
                "set training.precision: bf16, or lower optimizer.lr or loss_scale.smallest",
            )
        self.factor = max(self.factor / 2, self._settings.smallest)

    def counters(self) -> dict[str, float]:
        """What must be kept to go on."""
        return {"loss_scale": self.factor, "loss_scale_clean": self._clean, "loss_scale_stuck": self._stuck}

    def restore(self, counters: dict[str, float]) -> None:
        """Go on from what was kept; a run that was not in fp16 before starts afresh."""
        self.factor = counters.get("loss_scale", self._settings.initial)
        self._clean = int(counters.get("loss_scale_clean", 0))
        self._stuck = int(counters.get("loss_scale_stuck", 0))
