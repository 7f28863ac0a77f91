"""When and how the state of training is kept."""

from __future__ import annotations

from pydantic import Field

from hpcdl.spec.frozen import Frozen


class Checkpoint(Frozen):
    """When the state of training is saved."""

    every: int = Field(0, ge=0, description="steps between checkpoints; 0 saves none")
    keep: int = Field(2, gt=0, description="how many of the newest to keep")
