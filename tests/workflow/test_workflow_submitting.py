"""A submission is told as it was: refused, or not answered, which is something else."""

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from hpcdl import shell
from hpcdl.errors import NoAnswerError, SchedulerError, UsageError
from hpcdl.runs import store
from hpcdl.runs.record import RunState
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.studies import preparing


def test_submission_without_an_answer_is_not_said_to_be_refused(terminal, monkeypatch):
    """sbatch had hung after Slurm took the job: the run was called refused, and resuming it made a second job."""
    terminal.answer("sbatch", '[ "$1" = --test-only ] || sleep 30')
    monkeypatch.setattr(shell, "run", partial(shell.run, timeout_s=3.0))
    (folder,) = preparing.prepare(terminal.study(), terminal.runs)
    with pytest.raises(NoAnswerError, match="'sbatch' gave no answer within") as caught:
        submitting.submit([folder])
    assert f"hpcdl status {folder.path.name} looks for it" in caught.value.hint
    assert store.current(folder).state is RunState.PREPARED
    assert "gave no answer within" in store.current(folder).reason


def test_refused_submission_keeps_the_schedulers_words(terminal):
    terminal.answer(
        "sbatch", '[ "$1" = --test-only ] || { echo "sbatch: error: no such account" >&2; exit 1; }'
    )
    (folder,) = preparing.prepare(terminal.study(), terminal.runs)
    with pytest.raises(SchedulerError, match="Slurm refused the job: sbatch: error: no such account"):
        submitting.submit([folder])
    assert store.current(folder).state is RunState.REFUSED
    assert "no such account" in store.current(folder).reason


@pytest.fixture
def full(monkeypatch):
    """A disk that takes no more folders of logs."""
    real = Path.mkdir

    def mkdir(path, *args, **kwargs):
        if path.parent.name == "logs":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, *args, **kwargs)

    return lambda: monkeypatch.setattr(Path, "mkdir", mkdir)


def test_a_disk_that_is_full_when_a_run_is_resumed_is_told_in_words(terminal, full):
    """It was a crash report, when the attempt was claimed already."""
    (folder,) = preparing.prepare(terminal.study(), terminal.runs)
    store.note(folder, "refused", 1, reason="no such account")
    full()
    with pytest.raises(UsageError, match=r"cannot write .*/logs/attempt-2: No space left on device"):
        submitting.resume(folder)


def test_a_disk_that_is_full_when_a_run_is_prepared_keeps_no_half_of_it(terminal, full):
    full()
    with pytest.raises(UsageError, match=r"cannot write .*/logs/attempt-1: No space left on device"):
        preparing.prepare(terminal.study(), terminal.runs)
    assert list(terminal.runs.iterdir()) == []
