"""What every experiment file says, whatever engine it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from hpcdl.spec.chain import Chain
from hpcdl.spec.frozen import Frozen
from hpcdl.spec.job import Environment, Resources
from hpcdl.spec.sweep import Sweep
from hpcdl.units import parse_walltime


def _visible(name: str) -> str:
    if not name.strip():
        raise ValueError("a name needs at least one visible character")
    if "\0" in name:
        raise ValueError("a name cannot hold a NUL character")
    return name


class Basics(Frozen):
    """A name, what is asked of the machine, and variables."""

    name: Annotated[str, AfterValidator(_visible)] = "experiment"
    resources: Resources = Resources()
    chain: Chain = Chain()
    environment: Environment = Field(default_factory=dict, description="variables every rank sees")
    sweep: Sweep | None = Field(
        None, description="many experiments, each with values of its own for some keys"
    )

    @model_validator(mode="after")
    def _has_time_to_work(self) -> Self:
        lead, walltime = self.before_limit_seconds or 0, self.resources.walltime
        if lead >= parse_walltime(walltime):
            raise ValueError(
                f"{self.before_limit_key}: ranks are told {lead} s before the walltime of {walltime} ends, "
                "which is as soon as they start; ask for more walltime, or for less notice"
            )
        return self

    @property
    def steps(self) -> int | None:
        """Optimizer steps in all; None where nobody but the program knows."""
        return None

    @property
    def needs_mpi(self) -> bool:
        """Whether ranks must be started by what MPI can be initialised under."""
        return False

    @property
    def ends_together(self) -> bool:
        """Whether all ranks leave when they have met a last time, so that none ends long before another."""
        return False

    @property
    def before_limit_seconds(self) -> int | None:
        """How long before the walltime ends the ranks are told; 0: not at all; None: a usual time."""
        return None

    @property
    def before_limit_key(self) -> str:
        """The key that says so."""
        return "checkpoint.before_limit_seconds"

    @property
    def paths(self) -> dict[str, str]:
        """Files and folders that must be there, by the key that names each."""
        return {}

    def anchored(self, _folder: Path) -> Self:
        """The same with its paths absolute; relative ones are relative to the folder of the file."""
        return self

    def repeated(self, _index: int) -> Self:
        """The same with a seed of its own, as one of several repetitions; the first keeps its seed."""
        return self


def absolute(path: str, folder: Path) -> str:
    """``path`` from the root; a relative one is relative to ``folder``."""
    return str((folder / Path(path).expanduser()).absolute())
