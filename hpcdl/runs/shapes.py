"""The shapes that a run had: what is kept of a former one, and since when it has the one it has."""

from __future__ import annotations

from collections.abc import Iterable

from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.telemetry import RunEvent

RESHAPED = "reshaped"
"""The event of a run that goes on in another shape; its detail ``since`` is the first attempt that has it."""


def keep_former(folder: RunFolder, last: int) -> None:
    """Keep what the attempts up to ``last`` ran with, before it is replaced; what is kept already stays.

    Raises:
        UsageError: the run folder cannot be written.
    """
    kept = {folder.plan: folder.plan_until(last), folder.resolved: folder.resolved_until(last)}
    for path, target in kept.items():
        if path.exists() and not target.exists():
            store.write(target, path.read_text(encoding="utf-8"))


def since(events: Iterable[RunEvent]) -> int:
    """The first attempt in the shape that a run has now, from its launcher events; 0 if it had no other."""
    return max((event.detail["since"] for event in events if event.kind == RESHAPED), default=0)
