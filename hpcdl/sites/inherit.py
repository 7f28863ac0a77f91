"""A site file that begins with the values of another. They are copied: no site can change another.

Mappings are brought together key by key, anything else is replaced whole; a key set to null is taken out. Of
``identity`` only the sources and the list of what is unverified are inherited, and to that list is added.
What is wrong in either file is left for the schema to refuse.
"""

from __future__ import annotations

import copy
from typing import Any

from hpcdl.sites.site import Identity
from hpcdl.spec.load import Document, Location

_DOUBTS = ("identity", "unverified")
_SHARED = ("sources", "unverified")
_OWN: list[Location] = [
    *((key,) for key in ("name", "description", "extends")),
    *(("identity", key) for key in Identity.model_fields if key not in _SHARED),
]
"""What a file says of its own machine alone."""


def inherit(base: Document, child: Document) -> Document:
    """``child`` on top of ``base``; every value keeps the place where it was read.

    Of two of which one is no mapping, that one comes out.
    """
    for document in (base, child):
        if not isinstance(document.content, dict):
            return document
    bases = (*child.bases, base.source, *base.bases)
    merged = Document(child.source, copy.deepcopy(base.content), dict(base.places), bases)
    for location in _OWN:
        _drop(merged, location)
    _lay(merged, child, ())
    return merged


def _lay(merged: Document, child: Document, location: Location) -> None:
    """Put what ``child`` says at ``location`` and below over what is there."""
    given, before = _at(child, location), _at(merged, location)
    if isinstance(given, dict) and isinstance(before, dict):
        for key in given:
            _lay(merged, child, (*location, key))
        merged.places[location] = child.place(location)
        return
    if location == _DOUBTS and isinstance(given, list) and isinstance(before, list):
        for number, doubt in enumerate(given):
            merged.places[*location, len(before)] = child.place((*location, number))
            before.append(doubt)
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
