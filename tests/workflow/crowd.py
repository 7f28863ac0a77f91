"""Many runs of one folder, a Slurm that a test drives, and a clock to go with it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from hpcdl import shell
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.workflow.states.asking import Outside
from hpcdl.workflow.studies import preparing, studying

TINY = Path(__file__).parents[1] / "tiny.yaml"

# The states are files, so that a test can change them; a file "away" stands for a slurmctld that is down.
_SQUEUE = """#!/bin/bash
cd "{folder}" || exit
date +%s.%N >>asked
if [ -e away ]; then cat away >&2; exit 1; fi
for argument; do case $argument in --jobs=*) jobs=${{argument#--jobs=}} ;; esac; done
for job in ${{jobs//,/ }}; do
  if [ -e "$job" ]; then read -r state <"$job"; printf '%-40s|%s\\n' "$job" "$state"; fi
done
"""


class Slurm:
    """A stand-in on PATH: squeue answers from files, and notes each time it is started.

    Args:
        folder: where the programs and the files are made.
    """

    def __init__(self, folder: Path) -> None:
        self.bin, self._states = folder / "bin", folder / "states"
        self.bin.mkdir()
        self._states.mkdir()
        self.program("sacct", "#!/bin/sh\necho Slurm accounting storage is disabled >&2; exit 1\n")
        self.program("squeue", _SQUEUE.format(folder=self._states))

    def program(self, name: str, text: str) -> None:
        """Put a program on PATH."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def say(self, job_id: str, state: str, code: int = 0, reason: str = "None") -> None:
        """Let a job be in this state; ``code`` is a wait status."""
        (self._states / job_id).write_text(f"{state}|{code}|{reason}\n")

    def forget(self, job_id: str) -> None:
        """Let a job be unknown."""
        (self._states / job_id).unlink(missing_ok=True)

    def go_away(self, words: str = "slurm_load_jobs error: Unable to contact slurm controller") -> None:
        """Let no question be answered."""
        (self._states / "away").write_text(words)

    def come_back(self) -> None:
        """Answer again."""
        (self._states / "away").unlink()

    @property
    def asked(self) -> int:
        """How many times squeue was started."""
        log = self._states / "asked"
        return len(log.read_text().splitlines()) if log.exists() else 0


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.time = time.time()

    def sleep(self, seconds: float) -> None:
        """Pass the time."""
        self.time += seconds

    def outside(self) -> Outside:
        """The world on this clock: programs are real, who waits lets the others act."""
        return Outside(run=shell.run, now=lambda: self.time, sleep=lambda _: None)


def runs(folder: Path, count: int, site: Path | str = "generic-slurm") -> list[RunFolder]:
    """Runs that were submitted as jobs 1, 2, …: copies of one that was prepared."""
    (folder / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    (folder / "tiny.yaml").write_text(TINY.read_text())
    study = studying.study(studying.Request(folder / "tiny.yaml", str(site)))
    (first,) = preparing.prepare(study, folder / "runs")
    folders = [RunFolder(folder / "runs" / f"run-{number:04d}") for number in range(1, count + 1)]
    for number, each in enumerate(folders, 1):
        shutil.copytree(first.path, each.path)
        store.note(each, "submitted", 1, job_id=str(number), scheduler="slurm")
    store.discard(first)
    return folders


def end(folder: RunFolder, code: int = 0, attempt: int = 1) -> None:
    """What a script leaves at its end."""
    folder.job_exit(attempt).write_text(f'{{"exit_code": {code}}}\n')
