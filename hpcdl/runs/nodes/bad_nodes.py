"""Nodes that the ranks of a run found to be bad: a later attempt should not get them again."""

from __future__ import annotations

from dataclasses import dataclass

from hpcdl.run_folder import RunFolder
from hpcdl.telemetry import RunEvent, read


@dataclass(frozen=True)
class BadNode:
    """One of them.

    Args:
        host: as the scheduler calls it.
        why: what was found; as the ranks said it.
        attempt: which found it.
    """

    host: str
    why: str
    attempt: int


def named(folder: RunFolder) -> list[BadNode]:
    """The bad nodes of a run, each as it was named last; the newest is last."""
    found: dict[str, BadNode] = {}
    for event in read(folder.engine_events, RunEvent):
        if event.kind == "bad node":
            host = str(event.detail.get("host"))
            found.pop(host, None)
            found[host] = BadNode(host, str(event.detail.get("why", "")), event.attempt)
    return list(found.values())
