"""Where the ranks of an attempt were, as rank 0 wrote it down."""

from __future__ import annotations

import json

from hpcdl.errors import UsageError
from hpcdl.placement import Placement
from hpcdl.run_folder import RunFolder


def placement(folder: RunFolder, attempt: int) -> Placement:
    """What is known of an attempt.

    Raises:
        UsageError: nothing is known, or it cannot be read.
    """
    path = folder.placement(attempt)
    try:
        return Placement.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = sorted(int(each.stem.rpartition("-")[2]) for each in path.parent.glob("attempt-*.json"))
        others = f"; of {', '.join(map(str, known))} it is" if known else ""
        raise UsageError(
            f"where the ranks of attempt {attempt} of {folder.path.name} are is not known{others}",
            "it is written when all ranks have met, unless health.preflight is off",
        ) from None
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
