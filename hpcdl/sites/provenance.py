"""Where a value of a site comes from: its file, its source, and whether anybody verified it. Pure.

``identity.sources`` and ``identity.unverified`` name fields by dotted paths, ``*`` for any key. A path stands
for the field and all below it, but not for what a file that extends its own gives again. Where several do,
the longest counts, then the one with fewer ``*``, then that of the file that extends the other, then doubt.
An environment variable goes by its name, ``environment.NCCL_NET``, and its own ``source`` counts before all
paths.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, NamedTuple

from hpcdl.errors import UsageError
from hpcdl.sites.site import Site

Keys = tuple[str, ...]

_OWN = {"identity", "name", "description", "extends"}
"""What a file says of itself."""


class Field(NamedTuple):
    """One value of a site file."""

    name: str
    value: Any
    place: str  # file:line:column; of a default, what stands around it
    source: str | None  # where it was read, in the file's words
    unverified: bool
    given: bool  # whether the file says it, or it is the default


class _Claim(NamedTuple):
    """What one path says of a value; the greatest counts."""

    length: int
    literal: int
    nearness: int  # 0 in the file that was asked for, less in what it extends
    unverified: bool
    source: str | None


def covers(pattern: str, path: Keys) -> bool:
    """Whether ``pattern`` names ``path`` or something that holds it."""
    parts = pattern.split(".")
    return len(parts) <= len(path) and all(part in ("*", key) for part, key in zip(parts, path, strict=False))


def paths(site: Site) -> list[Keys]:
    """Every field of ``site``, groups too."""
    return [path for path, _ in _walk(site.model_dump(mode="json"), ())]


def _walk(value: Any, path: Keys) -> Iterator[tuple[Keys, Any]]:
    if path:
        yield path, value
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, below in entries:
        yield from _walk(below, (*path, str(key)))


def leaves(site: Site) -> list[Keys]:
    """The values that the site's file gives; a list is one value, and so is an environment variable."""
    given = site.model_dump(mode="json", exclude_unset=True, exclude=_OWN)
    given["environment"] = {entry.name: entry.value for entry in site.environment}
    return list(_leaves(given, ()))


def _leaves(value: Any, path: Keys) -> Iterator[Keys]:
    if not isinstance(value, dict):
        yield path
        return
    for key, below in value.items():
        yield from _leaves(below, (*path, key))


def origin(site: Site, path: Keys) -> tuple[str | None, bool] | None:
    """The source of the value at ``path`` and whether it is unverified; None if its file says neither."""
    path, own = _variable(site, path)
    if own is not None:
        return own, False
    claims = [claim for claim in _claims(site, path) if claim.nearness >= -site.distance(*path)]
    if not claims:
        return None
    closest = max(claims)
    return closest.source, closest.unverified


def _variable(site: Site, path: Keys) -> tuple[Keys, str | None]:
    """``path`` with a variable's name where it has its number, and that variable's own source."""
    if path[0] != "environment" or len(path) == 1:
        return path, None
    for number, entry in enumerate(site.environment):
        if path[1] in (entry.name, str(number)):
            return (path[0], entry.name, *path[2:]), entry.source
    return path, None


def _claims(site: Site, path: Keys) -> Iterator[_Claim]:
    for pattern, text in site.identity.sources.items():
        if covers(pattern, path):
            nearness = -site.distance("identity", "sources", pattern)
            yield _Claim(*_closeness(pattern), nearness, unverified=False, source=text)
    for number, pattern in enumerate(site.identity.unverified):
        if covers(pattern, path):
            nearness = -site.distance("identity", "unverified", number)
            yield _Claim(*_closeness(pattern), nearness, unverified=True, source=None)


def _closeness(pattern: str) -> tuple[int, int]:
    parts = pattern.split(".")
    return len(parts), len(parts) - parts.count("*")


def unverified(site: Site, path: Keys) -> bool:
    """Whether the file says of the value at ``path`` that nobody verified it."""
    found = origin(site, path)
    return found is not None and found[1]


def doubts(site: Site) -> list[str]:
    """The values that the file gives and calls unverified, as dotted paths."""
    return [".".join(path) for path in leaves(site) if unverified(site, path)]


def field(site: Site, name: str) -> Field:
    """One field by its dotted path.

    Raises:
        UsageError: there is no such field; with the closest names.
    """
    values = dict(_walk(site.model_dump(mode="json"), ()))
    known = {".".join(path): path for path in values}  # a key may hold a dot itself
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        advice = (
            f"did you mean {' or '.join(close)}?" if close else "`hpcdl site show` without --field lists them"
        )
        raise UsageError(f"site {site.name} has no field {name!r}; {advice}")
    path = known[name]
    given = path in dict(_walk(site.model_dump(mode="json", exclude_unset=True), ()))
    keys = [
        int(key) if key.isdecimal() and not _is_mapping(site, path[:i]) else key for i, key in enumerate(path)
    ]
    source, doubtful = origin(site, path) or (None, False)
    return Field(name, values[path], site.place(*keys), source, doubtful, given)


def _is_mapping(site: Site, path: Keys) -> bool:
    return isinstance(dict(_walk(site.model_dump(mode="json"), ())).get(path, {}), dict)
