"""How runs stand, for every verb that shows them."""

from __future__ import annotations

from collections.abc import Sequence

from hpcdl.cli import render
from hpcdl.errors import SchedulerError, UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.record import Attempt
from hpcdl.spec.reading import Outline
from hpcdl.workflow.states import following


def refreshed(folders: Sequence[RunFolder]) -> list[Attempt]:
    """States as they are now, or as last seen where a scheduler cannot be asked from here."""
    try:
        return following.refresh(folders)
    except SchedulerError as error:
        render.warning(f"states are as last seen: {error.message}", error.hint)
        return [following.last_known(folder) for folder in folders]


def legible(folders: Sequence[RunFolder]) -> dict[RunFolder, Outline]:
    """Those whose specification can be read, with an outline of it; the others are warned of and left out."""
    found = {}
    for folder in folders:
        try:
            found[folder] = store.outline(folder)
        except UsageError as error:
            render.warning(f"{folder.path.name} is left out: {error.message}", error.hint)
    return found
