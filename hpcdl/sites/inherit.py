"""A site file that begins with the values of another. They are copied: no site can change another.

Mappings are brought together key by key, anything else is replaced whole; a key set to null is taken out. Of
``identity`` only the sources and the list of what is unverified are inherited, and to that list is added.
"""

from __future__ import annotations

import copy
from typing import Any

from hpcdl.spec.load import Document, Location

_OWN = ("name", "description", "extends")
_SHARED_IDENTITY = ("sources", "unverified")
_DOUBTS = ("identity", "unverified")


def inherit(base: Document, child: Document) -> Document:
    """``child`` on top of ``base``; every value keeps the place where it was read."""
    merged = Document(child.source, copy.deepcopy(base.content), dict(base.places))
    for key in _OWN:
        _drop(merged, (key,))
    for key in list(merged.content.get("identity") or {}):
        if key not in _SHARED_IDENTITY:
            _drop(merged, ("identity", key))
    doubts = _at(merged, _DOUBTS) or []
    _lay(merged, child, ())
    if doubts:
        merged.content["identity"]["unverified"] = [*doubts, *(_at(child, _DOUBTS) or [])]
    return merged


def _lay(merged: Document, child: Document, location: Location) -> None:
    """Put what ``child`` says at ``location`` and below over what is there."""
    given, before = _at(child, location), _at(merged, location)
    if isinstance(given, dict) and isinstance(before, dict):
        for key in given:
            _lay(merged, child, (*location, key))
        merged.places[location] = child.place(location)
        return
    _drop(merged, location)
    if given is None:
        return
    parent = _at(merged, location[:-1])
    parent[location[-1]] = copy.deepcopy(given)
    merged.places |= {
        place: where for place, where in child.places.items() if place[: len(location)] == location
    }


def _at(document: Document, location: Location) -> Any:
    content = document.content
    for key in location:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _drop(document: Document, location: Location) -> None:
    parent = _at(document, location[:-1])
    if isinstance(parent, dict):
        parent.pop(location[-1], None)
    for place in [place for place in document.places if place[: len(location)] == location]:
        del document.places[place]
