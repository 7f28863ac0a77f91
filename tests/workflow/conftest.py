"""A place to submit from, with programs that answer as Slurm's do."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcdl.workflow.studies import studying

TINY = Path(__file__).parents[1] / "tiny.yaml"


class Terminal:
    """A folder with an experiment, a folder of runs, and a Slurm that one can tell what to answer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs, self.file = folder, folder / "runs", folder / "tiny.yaml"
        self.programs = folder / "bin"
        self.programs.mkdir()
        (folder / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
        self.file.write_text(TINY.read_text())
        self.answer("squeue", "true")
        self.answer("scontrol", "true")
        self.answer("sacct", "true")

    def answer(self, program: str, body: str) -> None:
        """Let one of Slurm's commands do ``body``."""
        path = self.programs / program
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def submitted(self) -> list[str]:
        """What sbatch was given, one line a call."""
        path = self.folder / "submitted"
        return path.read_text().splitlines() if path.exists() else []

    def study(self, site: str = "generic-slurm", *settings: str) -> studying.Study:
        return studying.study(studying.Request(self.file, site, settings))


@pytest.fixture
def terminal(tmp_path, monkeypatch) -> Terminal:
    """A terminal whose sbatch takes every job and numbers them from 70 on."""
    found = Terminal(tmp_path)
    monkeypatch.setenv("PATH", f"{found.programs}:/usr/bin:/bin")
    listed = tmp_path / "submitted"
    takes = f'echo "$PWD $*" >>"{listed}"; echo $((69 + $(wc -l <"{listed}")))'
    found.answer("sbatch", f'[ "$1" = --test-only ] || {{ {takes}; }}')
    return found
