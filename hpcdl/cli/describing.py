"""``hpcdl schema``: what files look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from hpcdl.cli import render
from hpcdl.errors import UsageError
from hpcdl.sites.site import Site
from hpcdl.spec.reading import AnyExperiment


def _site() -> dict[str, Any]:
    schema: dict[str, Any] = _partial(Site.model_json_schema())
    return schema


def _partial(schema: Any) -> Any:
    """``schema`` for a file that leaves to others what it extends, or takes out by null what they say."""
    if isinstance(schema, list):
        return [_partial(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    part = {key: _partial(value) for key, value in schema.items() if key != "required"}
    if isinstance(part.get("additionalProperties"), dict):
        part["additionalProperties"] = {"anyOf": [part["additionalProperties"], {"type": "null"}]}
    return part


_SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "experiment": TypeAdapter[AnyExperiment](AnyExperiment).json_schema,
    "site": _site,
}


def schema(kind: str) -> None:
    """Print the JSON Schema of one kind of file."""
    if kind not in _SCHEMAS:
        raise UsageError(f"there is no schema {kind!r}; known: {', '.join(_SCHEMAS)}")
    render.print_json(_SCHEMAS[kind]())
