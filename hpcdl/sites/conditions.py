"""When a variable of a site holds: ``nodes > 1``, ``vendor == amd``, ``rocm >= 7.1``, joined by ``and``.

A version may not be known where the script is written (a container, an interpreter of the site's own). Then
nothing is known of the condition either, and the variable is left out.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt,
    "<": operator.lt,
}  # fmt: skip
_VENDORS = ("nvidia", "amd", "intel", "none")
_VERSIONS = ("cuda", "rocm", "torch")
_CLAUSE = re.compile(r"\s*([a-z]+)\s*(>=|<=|==|!=|>|<)\s*(\S+)\s*")
_VERSION = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True)
class Known:
    """What is known of a job when its script is written."""

    nodes: int
    vendor: str  # nvidia, amd, intel, or none for CPUs
    versions: Mapping[str, str] = field(
        default_factory=dict
    )  # of cuda, rocm and torch; what is not known is not there


@dataclass(frozen=True)
class _Clause:
    name: str
    operator: str
    value: str

    def holds(self, known: Known) -> bool | None:
        compare = _OPERATORS[self.operator]
        if self.name == "vendor":
            return compare(known.vendor, self.value)
        if self.name == "nodes":
            return compare(known.nodes, int(self.value))
        version = known.versions.get(self.name)
        return None if version is None else compare(*_aligned(version, self.value))


def holds(condition: str, known: Known) -> bool | None:
    """Whether ``condition`` holds for a job; None if a version that it asks for is not known."""
    answers = [clause.holds(known) for clause in _parse(condition)]
    if False in answers:
        return False
    return None if None in answers else True


def _parse(condition: str) -> list[_Clause]:
    if condition.strip() == "always":
        return []
    return [_clause(text) for text in condition.split(" and ")]


def _clause(text: str) -> _Clause:
    match = _CLAUSE.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text.strip()!r} is no condition; write for example nodes > 1, vendor == amd, rocm >= 7.1"
        )
    name, sign, value = match.groups()
    if name == "vendor" and (sign not in ("==", "!=") or value not in _VENDORS):
        raise ValueError(f"{text.strip()!r}: a vendor is == or != one of {', '.join(_VENDORS)}")
    if name == "nodes" and not value.isdecimal():
        raise ValueError(f"{text.strip()!r}: {value!r} is not a number of nodes")
    if name in _VERSIONS and not _VERSION.fullmatch(value):
        raise ValueError(f"{text.strip()!r}: {value!r} is not a version such as 7.1")
    if name not in ("nodes", "vendor", *_VERSIONS):
        raise ValueError(f"{text.strip()!r}: {name!r} is not among nodes, vendor, {', '.join(_VERSIONS)}")
    return _Clause(name, sign, value)


def _aligned(version: str, wanted: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both as numbers; 7.1.1 is compared with 7.1 by as many parts as 7.1 has."""
    right = tuple(int(part) for part in wanted.split("."))
    found = _VERSION.match(version)
    left = tuple(int(part) for part in found[0].split(".")) if found else ()
    return (left + (0,) * len(right))[: len(right)], right


def _checked(condition: str) -> str:
    _parse(condition)
    return condition


Condition = Annotated[str, AfterValidator(_checked)]
"""A condition as it stands in a site file; ``always`` holds for every job."""
