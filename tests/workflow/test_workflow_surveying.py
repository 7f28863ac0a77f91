"""A job that asks a node what it is: whatever ends the waiting for it, none is left behind."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest

from hpcdl import shell
from hpcdl.errors import NoAnswerError, SchedulerError
from hpcdl.sites.load import load_site
from hpcdl.spec.job import Resources
from hpcdl.workflow import surveying

OBSERVE = """
import sys
from pathlib import Path
from hpcdl.errors import SchedulerError
from hpcdl.sites.load import load_site
from hpcdl.spec.job import Resources
from hpcdl.workflow import surveying
asked = Resources.model_validate({"walltime": "00:01:00"})
try:
    surveying.observe(load_site("generic-slurm"), asked, Path(sys.argv[1]))
except SchedulerError as error:
    sys.exit(f"{error.message} hint: {error.hint}")
"""


@pytest.fixture
def slurm(terminal):
    """A stand-in that takes a job under the name in its script, and knows it by that name until it is cancelled."""
    taken = terminal.folder / "taken"
    terminal.taken = taken
    terminal.take = f"sed -n 's/^#SBATCH --job-name=//p' job.sh >'{taken}'"
    terminal.answer("squeue", f'for word; do [ "$word" = --name="$(cat "{taken}")" ] && echo 70; done; true')
    terminal.answer("scancel", f'case "$*" in *70*) rm "{taken}" ;; *) exit 1 ;; esac')
    return terminal


def observe(terminal):
    asked = Resources.model_validate({"walltime": "00:01:00"})
    return surveying.observe(load_site("generic-slurm"), asked, terminal.runs)


def interrupted(terminal):
    """What a process says to whose submission sbatch answers with Ctrl-C."""
    terminal.answer("sbatch", f"{terminal.take}; kill -INT $PPID; exec sleep 5")
    command = [sys.executable, "-c", OBSERVE, str(terminal.runs)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=200, check=False).stderr


def test_ctrl_c_before_the_answer_to_the_submission_cancels_what_came_in(slurm):
    """Slurm has the job already, and sbatch has not said so yet: it is found by its name."""
    assert interrupted(slurm).endswith("KeyboardInterrupt\n")
    assert not slurm.taken.exists()


def test_no_answer_to_the_submission_cancels_what_came_in(slurm, monkeypatch):
    slurm.answer("sbatch", f"{slurm.take}; exec sleep 60")
    monkeypatch.setattr(shell, "run", partial(shell.run, timeout_s=5.0))  # so long nobody waits here
    with pytest.raises(NoAnswerError, match="'sbatch' gave no answer"):
        observe(slurm)
    assert not slurm.taken.exists()


def test_a_refusal_is_told_in_the_words_of_the_scheduler(slurm):
    slurm.answer("sbatch", "echo 'sbatch: error: invalid account' >&2; exit 1")
    slurm.taken.write_text("another job")
    with pytest.raises(SchedulerError, match="invalid account"):
        observe(slurm)
    assert slurm.taken.exists()


def test_who_cannot_cancel_it_is_told_its_name(slurm):
    slurm.answer("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    said = interrupted(slurm)
    assert f"hint: job {slurm.taken.read_text().strip()} may be left" in said
