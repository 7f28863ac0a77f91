"""Many experiments from one file: which keys take which values, and which points that makes. Pure."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from hpcdl.spec.frozen import Frozen

MOST = 10_000
"""Points of one sweep: more would be a folder each that nobody reads."""

_DIGITS = 6  # of a number that is drawn: what the last bits are depends on a machine's library of functions


class Setting(NamedTuple):
    """One key of a point."""

    key: str  # dotted
    value: Any
    place: tuple[str | int, ...]  # of the value below ``sweep``: ("grid", "training.seed", 2)


Settings = tuple[Setting, ...]


class Draw(Frozen):
    """How the values of a key are drawn: exactly one of these."""

    uniform: tuple[float, float] | None = Field(None, description="evenly between two numbers")
    log_uniform: tuple[float, float] | None = Field(
        None, description="evenly in the logarithm, between two positive numbers"
    )
    integers: tuple[int, int] | None = Field(None, description="whole numbers, both ends included")
    choice: list[Any] | None = Field(None, min_length=1, description="one of these")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            ways = ", ".join(type(self).model_fields)
            raise ValueError(
                f"give exactly one of {ways}" + (f", not {' and '.join(given)}" if given else "")
            )
        for name in ("uniform", "log_uniform", "integers"):
            ends = getattr(self, name)
            if ends and not ends[0] < ends[1]:
                raise ValueError(f"{name} {list(ends)}: the first number must be below the second")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform {list(self.log_uniform)}: both numbers must be above 0")
        return self

    def at(self, share: float) -> Any:
        """The value at a share of the way, from 0 up to but not including 1."""
        if self.uniform:
            low, high = self.uniform
            return _rounded(low * (1 - share) + high * share, low, high)
        if self.log_uniform:
            low, high = self.log_uniform
            # The quotient of the two, or its power, may be no number any more where both are.
            logarithm = math.log(low) * (1 - share) + math.log(high) * share
            return _rounded(math.exp(logarithm), low, high)
        if self.integers:
            first, last = self.integers
            return first + int(share * (last - first + 1))
        choice = self.choice or []
        return choice[int(share * len(choice))]


def _rounded(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.{_DIGITS}g}"), low), high)


def _keys(values: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in values:
        parts = key.split(".")
        if not all(part.strip() for part in parts):
            raise ValueError(f"{key!r} is no key of an experiment; write for example training.optimizer.lr")
        if parts[0] == "sweep":
            raise ValueError(f"{key!r} cannot be swept; a sweep has no sweeps within it")
    return values


Values = Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], AfterValidator(_keys)]


class Random(Frozen):
    """Points with drawn values."""

    points: int = Field(gt=0, description="how many")
    seed: int = Field(0, ge=0, description="the same seed, the same points, on every machine")
    keys: Annotated[dict[str, Draw], AfterValidator(_keys)] = Field(
        min_length=1, description="how the values of each key are drawn"
    )

    def settings(self) -> Iterator[Settings]:
        """The points in order.

        What is drawn for a key depends on the seed, on its name and on the point only. So more points, or
        another key, change nothing of those there were. Only ``random()`` is asked, the one function of
        Python's generator that is promised to stay as it is.
        """
        streams = {key: random.Random(f"{self.seed} {key}") for key in self.keys}  # noqa: S311 - no secret
        for _ in range(self.points):
            yield tuple(
                Setting(key, draw.at(streams[key].random()), ("random", "keys", key))
                for key, draw in self.keys.items()
            )


def _equally_long(values: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if len({len(column) for column in values.values()}) > 1:
        counts = ", ".join(f"{key} has {len(column)}" for key, column in values.items())
        raise ValueError(f"values stand side by side, so there must be as many of each; {counts}")
    return values


class Sweep(Frozen):
    """Values for keys of the experiment; every point of ``grid`` meets those of ``zip`` and ``random``."""

    grid: Values = Field(default_factory=dict, description="every combination; the last key changes fastest")
    zip: Annotated[Values, AfterValidator(_equally_long)] = Field(
        default_factory=dict, description="the first values together, then the second ones, and so on"
    )
    random: Random | None = Field(None, description="drawn values")
    at_once: int | None = Field(None, gt=0, description="most points that run at a time; null: no limit")

    @model_validator(mode="after")
    def _each_key_once(self) -> Self:
        keys = [*self.grid, *self.zip, *(self.random.keys if self.random else ())]
        if not keys:
            raise ValueError("nothing is swept; give grid, zip or random")
        for one, other in itertools.combinations(keys, 2):
            if one == other:
                raise ValueError(f"{one} stands in two parts; each key may take its values from one")
            if one.startswith(f"{other}.") or other.startswith(f"{one}."):
                raise ValueError(f"{one} and {other} would overwrite each other; sweep one of them")
        if self.size > MOST:
            raise ValueError(f"{self._product} points, more than the {MOST} of one sweep")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """Every swept key, in the order in which a point names them."""
        return (*self.grid, *self.zip, *(self.random.keys if self.random else ()))

    @property
    def size(self) -> int:
        """Number of points, those that are alike counted each time."""
        return math.prod(self._counts)

    @property
    def _counts(self) -> list[int]:
        zipped = [len(column) for column in self.zip.values()][:1]
        drawn = [self.random.points] if self.random else []
        return [*(len(column) for column in self.grid.values()), *zipped, *drawn]

    @property
    def _product(self) -> str:
        """The number of points, with what it is a product of."""
        factors = " × ".join(map(str, self._counts))
        return factors if len(self._counts) == 1 else f"{factors} = {self.size}"

    def settings(self) -> Iterator[Settings]:
        """Every point: grid outermost, then zip, then random."""
        columns: list[Iterable[Settings]] = [
            [(setting,) for setting in _column("grid", key, values)] for key, values in self.grid.items()
        ]
        if self.zip:
            side_by_side = [_column("zip", key, values) for key, values in self.zip.items()]
            columns.append([tuple(row) for row in zip(*side_by_side, strict=True)])
        if self.random:
            columns.append(self.random.settings())
        for parts in itertools.product(*columns):
            yield tuple(itertools.chain(*parts))


def _column(part: str, key: str, values: list[Any]) -> list[Setting]:
    return [Setting(key, value, (part, key, index)) for index, value in enumerate(values)]
