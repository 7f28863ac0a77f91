"""The points of a sweep: each a whole experiment, checked before anything is done with any of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpcdl.errors import HpcdlError, UsageError
from hpcdl.spec import load, reading
from hpcdl.spec.frozen import Frozen
from hpcdl.spec.job import looks_secret
from hpcdl.spec.load import Document, Location
from hpcdl.spec.reading import AnyExperiment
from hpcdl.spec.sweep import Setting, Settings, Sweep

_SHOWN = 20  # problems in one message


@dataclass(frozen=True)
class Point:
    """One experiment of a sweep.

    Args:
        values: swept key → value, as the file has it.
        document: the experiment file with them in place.
        experiment: what that means.
    """

    values: Mapping[str, Any]
    document: Document
    experiment: AnyExperiment

    def __str__(self) -> str:
        return shown(self.values)


def shown(values: Mapping[str, Any]) -> str:
    """A point in words, without what may be secret: ``training.seed=1, model.layers=4``."""
    return ", ".join(f"{key}={value_text(_sayable(key, value))}" for key, value in values.items())


def _sayable(key: str, value: Any) -> Any:
    """A value in which ``[removed]`` stands for what looks like a secret by its name."""
    if looks_secret(key):
        return "[removed]"
    return {name: _sayable(name, each) for name, each in value.items()} if isinstance(value, dict) else value


def value_text(value: Any) -> str:
    """A value as one would write it into the file, on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _Swept(Frozen):
    sweep: Sweep


def is_swept(document: Document) -> bool:
    """Whether a document holds a sweep."""
    return isinstance(document.content, dict) and document.content.get("sweep") is not None


def sweep_of(document: Document) -> Sweep:
    """What a document sweeps.

    Raises:
        UsageError: with every problem of ``sweep:``, each on a line with its place.
    """
    part = Document(document.source, {"sweep": document.content["sweep"]}, document.places)
    return load.validate(part, _Swept).sweep


class Problems:
    """What is wrong with points of a sweep: each thing told once, with the first point that has it."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}
        self._hint: str | None = None

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, lines: Iterable[str], values: Mapping[str, Any], hint: str | None = None) -> None:
        """Keep what is wrong with one point."""
        for line in lines:
            self._found.setdefault(line, []).append(shown(values))
        self._hint = self._hint or hint

    def error(self, kind: type[HpcdlError], size: int, hint: str | None = None) -> HpcdlError:
        """All of it as one error.

        Args:
            kind: of the error.
            size: how many points there are; what is wrong with all of them names none.
            hint: the way out, if not what was first given.
        """
        return kind("\n".join(self._lines(size)), hint or self._hint)

    def _lines(self, size: int) -> Iterator[str]:
        for line, where in list(self._found.items())[:_SHOWN]:
            others = len(where) - 1
            more = f" and {others} other{'s' if others > 1 else ''}" if others else ""
            yield line if len(where) == size else f"{line} (in point {where[0]}{more})"
        if len(self._found) > _SHOWN:
            yield f"and {len(self._found) - _SHOWN} further problems"


def points(document: Document, sweep: Sweep) -> list[Point]:
    """Every point of a sweep, in order; experiments that are the same stand there once.

    Raises:
        UsageError: with every problem of every point, each with its place and the point's values.
    """
    reading.spell_out(document)
    found: dict[str, Point] = {}
    problems = Problems()
    for settings in sweep.settings():
        values = {setting.key: setting.value for setting in settings}
        try:
            point = Point(values, own := _placed(document, settings), reading.experiment(own))
        except UsageError as error:
            problems.add(error.message.splitlines(), values, error.hint)
            continue
        found.setdefault(point.experiment.model_dump_json(), point)
    if problems:
        raise problems.error(UsageError, sweep.size)
    return list(found.values())


def _placed(document: Document, settings: Settings) -> Document:
    """A document without its sweep, with the values of one point.

    Raises:
        UsageError: the command line or the file says something else of a key.
    """
    content = copy.deepcopy({key: value for key, value in document.content.items() if key != "sweep"})
    own = Document(document.source, content, dict(document.places))
    for setting in settings:
        _put(own, setting)
    return own


def _put(own: Document, setting: Setting) -> None:
    keys, origin = tuple(setting.key.split(".")), ("sweep", *setting.place)
    if typed := _typed(own, keys):
        raise UsageError(f"{typed}: {own.place(origin)} sweeps {setting.key}; leave out one of them")
    before = set(own.places)
    load.assign(own, keys, setting.value, own.place(origin))
    name = own.places.get((*_key_of(setting), "<key>"), own.place(origin))
    for depth in range(1, len(keys) + 1):
        if keys[:depth] not in before:  # the sweep alone names it, and may have misspelt it
            own.places[(*keys[:depth], "<key>")] = name
    _place_below(own, keys, origin)


def _typed(own: Document, keys: Location) -> str:
    """What was typed that a value at ``keys`` would overwrite; empty if nothing was."""
    overwritten = _overwritten(own.content, keys)
    if overwritten is None:
        return ""
    below = (place for location, place in own.places.items() if location[: len(keys)] == keys)
    return next((place for place in (own.place(overwritten), *below) if place.startswith("--")), "")


def _overwritten(content: Any, keys: Location) -> Location | None:
    """Where a value stands that would go for one at ``keys``; None if there is none, as beside siblings."""
    for depth, key in enumerate(keys):
        if not isinstance(content, dict):
            return keys[:depth]
        if key not in content:
            return None
        content = content[key]
    return keys


def _key_of(setting: Setting) -> Location:
    part = [entry for entry in setting.place if isinstance(entry, str)]
    return ("sweep", *part)


def _place_below(own: Document, keys: Location, origin: Location) -> None:
    """What stands within a value, as in a whole decomposition, has places of its own."""
    for location in [
        each for each in own.places if each[: len(origin)] == origin and len(each) > len(origin)
    ]:
        own.places[(*keys, *location[len(origin) :])] = own.places[location]
