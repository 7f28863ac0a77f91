"""When and how the state of training is kept, and what training starts from."""

from __future__ import annotations

from pydantic import Field

from hpcdl.spec.frozen import Frozen


class Checkpoint(Frozen):
    """When the state of training is saved, and the weights it starts from."""

    every: int = Field(0, ge=0, description="steps between checkpoints; 0 saves none")
    keep: int = Field(2, gt=0, description="how many of the newest to keep")
    asynchronous: bool = Field(
        default=True, description="written by a thread while training goes on; false: training waits"
    )
    before_limit_seconds: int | None = Field(
        None,
        ge=0,
        description="how long before the walltime ends a run saves itself and stops; 0: not at all; "
        "two minutes, but at most a tenth of the walltime, if not given",
    )
    start: str | None = Field(
        None,
        min_length=1,
        description="weights to start from: a folder in Hugging Face layout or the checkpoint of a run; "
        "relative to the experiment file",
    )
