"""``hpcdl`` and ``python -m hpcdl``."""

from __future__ import annotations

from hpcdl.cli.boundary import guarded


def main() -> None:
    """Run the command line; failures become text and an exit code here and nowhere else."""
    # Imported inside the boundary, so that a broken installation is reported like any failure.
    with guarded():
        from hpcdl.cli.app import app

        app(prog_name="hpcdl")


if __name__ == "__main__":
    main()
