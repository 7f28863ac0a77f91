"""Which kind of experiment, or of run, a file holds."""

from __future__ import annotations

from pydantic import BaseModel, TypeAdapter

from hpcdl.errors import UsageError
from hpcdl.spec.basics import Basics
from hpcdl.spec.command import CommandExperiment, CommandRun
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment, ResolvedRun
from hpcdl.spec.load import Document, validate

AnyExperiment = Experiment | CommandExperiment
"""What an experiment file may hold."""

AnyRun = ResolvedRun | CommandRun
"""What ``resolved.json`` may hold."""

_ENGINES = Experiment.model_fields.keys() - Basics.model_fields.keys()


def experiment(document: Document) -> AnyExperiment:
    """The experiment that a document holds.

    Raises:
        UsageError: with every problem, each on a line with its place, value and way out.
    """
    given = document.content if isinstance(document.content, dict) else {}
    if "command" not in given:
        return validate(document, Experiment, ("command",))
    stray = [key for key in given if key in _ENGINES]
    if stray:
        places = (f"{document.places.get((key, '<key>')) or document.place((key,))}: {key}" for key in stray)
        raise UsageError(
            "\n".join(f"{place} is for the bundled engine, and command: replaces it" for place in places),
            "take it out, and tell the program by its own arguments; or take out command:",
        )
    spell_out(document)
    return validate(document, CommandExperiment)


def spell_out(document: Document) -> None:
    """Let a bare list under ``command`` be what it is short for: the arguments stand under ``run``."""
    given = document.content if isinstance(document.content, dict) else {}
    if not isinstance(given.get("command"), list):
        return
    arguments = given["command"]
    for index in range(len(arguments)):
        document.places["command", "run", index] = document.place(("command", index))
    document.content = given | {"command": {"run": arguments}}


def run(text: str) -> AnyRun:
    """The run that the text of a ``resolved.json`` describes.

    Raises:
        ValueError: it is none.
    """
    return _RUN.validate_json(text)


class _Training(BaseModel):
    steps: int | None = None


class _Command(BaseModel):
    run: list[str]


class _Asked(BaseModel):
    training: _Training = _Training()
    command: _Command | None = None


class Outline(BaseModel):
    """The little of a ``resolved.json`` that a list of many runs shows; nothing else of it is checked."""

    site: str
    decomposition: Decomposition | None = None  # None for a command
    experiment: _Asked

    @property
    def steps(self) -> int | None:
        """Optimizer steps in all; None where nobody but the program knows."""
        return self.experiment.training.steps

    @property
    def command(self) -> list[str] | None:
        """The program and its arguments, where there is one."""
        return self.experiment.command.run if self.experiment.command else None


def outline(text: str) -> Outline:
    """What a list shows of the text of a ``resolved.json``.

    Raises:
        ValueError: it is none.
    """
    return Outline.model_validate_json(text)


_RUN: TypeAdapter[AnyRun] = TypeAdapter(AnyRun)
