"""The one place where failures become text and an exit code."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcdl.errors import HpcdlError


@contextmanager
def guarded() -> Iterator[None]:
    """Turn any failure inside into a message on standard error and the exit code of its kind."""
    try:
        yield
    except HpcdlError as error:
        _say(error.message, error.hint)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader (head, less) has gone: not our failure. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - a traceback on a login node is a bug; it goes to a file
        _say(f"unexpected {type(error).__name__}: {error}", f"please report it with {_keep_traceback()}")
        sys.exit(1)


def _say(message: str, hint: str | None) -> None:
    label, plain = (
        ("\033[1;31m", "\033[0m") if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    )
    print(f"{label}error:{plain} {message}", file=sys.stderr)  # noqa: T201
    if hint:
        print(f"  {hint}", file=sys.stderr)  # noqa: T201


def _keep_traceback() -> str:
    """Write the traceback where it can be attached to a report; on the screen if that fails."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "hpcdl"
    path = state / f"crash-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    text = f"{sys.argv}\n{sys.version}\n{traceback.format_exc()}"
    try:
        state.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError:
        return text
    return str(path)
