"""How far a run is carried by itself from one scheduler job to the next."""

from __future__ import annotations

from pydantic import Field

from hpcdl.spec.frozen import Frozen


class Chain(Frozen):
    """A run goes on by itself after what is nobody's fault: the walltime, preemption, a lost node."""

    attempts: int = Field(
        50, gt=0, description="how many attempts it may come to in all; 1: none is submitted by itself"
    )
    without_progress: int = Field(
        2, gt=0, description="it is given up after so many attempts, one after the other, that saved no step"
    )
