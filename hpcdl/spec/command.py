"""An engine of the user's own: a program that is started once a rank, as torchrun would start it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field

from hpcdl.spec.basics import Basics, absolute
from hpcdl.spec.chain import Chain
from hpcdl.spec.experiment import BaseRun
from hpcdl.spec.frozen import Frozen


def _text(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        raise ValueError(f"an argument is text; write it in quotes: {str(value)!r}")
    return value


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("an argument cannot hold a NUL character")
    return value


def _named(run: list[str]) -> list[str]:
    if not run[0]:
        raise ValueError("the program has no name; the first word of the list is what is started")
    return run


Argument = Annotated[str, BeforeValidator(_text), AfterValidator(_no_nul)]


class LimitWarning(Frozen):
    """A signal to every rank before the walltime ends; without one the program is not told."""

    signal: Literal["TERM", "INT", "USR1", "USR2"] = Field(description="what the program takes for it")
    seconds: int = Field(120, gt=0, description="how long before the end of the walltime")


class Command(Frozen):
    """One program and its arguments, run once a rank and by no shell."""

    run: Annotated[list[Argument], AfterValidator(_named)] = Field(
        min_length=1, description="the program and its arguments, one a rank"
    )
    folder: str = Field(
        ".", min_length=1, description="where the program is started; relative to the experiment file"
    )
    seed: int = Field(0, ge=0, description="told to the program as HPCDL_SEED; --repeat counts it up")
    warning: LimitWarning | None = None

    def __str__(self) -> str:
        return shlex.join(self.run)


def _whole(given: Any) -> Any:
    if isinstance(given, str):
        raise ValueError(f"no shell takes it apart; write a list: [{', '.join(given.split())}]")  # noqa: TRY004
    return {"run": given} if isinstance(given, list) else given


class CommandExperiment(Basics):
    """An experiment file with ``command:``; the program knows the rest."""

    chain: Chain = Field(
        Chain(attempts=1), description="nobody but the program knows whether it can go on, so 1 attempt"
    )

    command: Annotated[
        Command,
        BeforeValidator(_whole, json_schema_input_type=Annotated[list[str], Field(min_length=1)] | Command),
    ] = Field(description="the program and its arguments as a list, or a mapping that says more")

    @property
    def before_limit_seconds(self) -> int | None:
        """Nothing is sent unless the file names the signal: most programs die of one they do not expect."""
        return self.command.warning.seconds if self.command.warning else 0

    @property
    def before_limit_key(self) -> str:
        """The key that says so."""
        return "command.warning"

    @property
    def paths(self) -> dict[str, str]:
        """The folder in which the program is started."""
        return {"command.folder": self.command.folder}

    def anchored(self, folder: Path) -> Self:
        """The same, started in an absolute folder."""
        place = {"folder": absolute(self.command.folder, folder)}
        return self.model_copy(update={"command": self.command.model_copy(update=place)})

    def repeated(self, index: int) -> Self:
        """The same with a seed of its own, as one of several repetitions; the first keeps its seed."""
        seed = {"seed": self.command.seed + index}
        return self.model_copy(update={"command": self.command.model_copy(update=seed)})


class CommandRun(BaseRun):
    """``resolved.json`` of a run whose engine is the user's own."""

    experiment: CommandExperiment
