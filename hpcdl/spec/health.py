"""What ranks are looked at for: before the first step, and while they train."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hpcdl.spec.frozen import Frozen


class Health(Frozen):
    """A few seconds of measuring before the first step, and a watch over every later one."""

    preflight: Literal["off", "warn", "refuse"] = Field(
        "warn",
        description="each attempt begins with a look at every node; a slow one is only told of, or refused. "
        "A missing or shared device is always refused, unless it is off",
    )
    slow_factor: float = Field(
        2.0, gt=1, description="how many times the median a product or an all-reduce may take"
    )
    hang_seconds: int | None = Field(
        None,
        ge=0,
        description="the job is ended when a rank has stood still for so long; 0: never; "
        "twenty usual steps, but at least ten minutes, if not given",
    )
