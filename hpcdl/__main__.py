"""``hpcdl`` and ``python -m hpcdl``."""

from __future__ import annotations

import io
import sys

from hpcdl.cli.boundary import guarded


def main() -> None:
    """Run the command line; failures become text and an exit code here and nowhere else."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that a terminal does not have is no failure
            stream.reconfigure(errors="replace")
    # Imported inside the boundary, so that a broken installation is reported like any failure.
    with guarded():
        from hpcdl.cli.app import app

        app(prog_name="hpcdl")


if __name__ == "__main__":
    main()
