"""What a run looks at while it trains: evaluation on held-out data, traces, metrics beside our own."""

from __future__ import annotations

from pydantic import Field

from hpcdl.spec.frozen import Frozen


class Evaluation(Frozen):
    """The loss on sequences that are never trained on: ``data.validation`` holds them out."""

    every: int = Field(0, ge=0, description="steps between evaluations, and one at the end; 0 makes none")
    sequences: int = Field(64, gt=0, description="how many held-out sequences, at most")

    def due(self, step: int, steps: int) -> bool:
        """Whether there is an evaluation after ``step`` of ``steps``."""
        return self.every > 0 and (step % self.every == 0 or step == steps)


class Trace(Frozen):
    """A Chrome trace of chosen steps, one lane a rank; Perfetto opens it."""

    first: int = Field(0, ge=0, description="the first traced step; 0 traces none")
    steps: int = Field(1, gt=0, description="how many steps from there")


class Metrics(Frozen):
    """Where metrics go besides ``metrics/``."""

    tensorboard: bool = Field(False, description="write TensorBoard event files into the run folder")
