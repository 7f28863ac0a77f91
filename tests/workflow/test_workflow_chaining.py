"""A run that waits for others: told to the scheduler as long as there is something to wait for."""

from __future__ import annotations

import json

import pytest

from hpcdl.errors import SchedulerError, UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.record import RunState
from hpcdl.schedulers.base import After
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.states import following
from hpcdl.workflow.studies import preparing
from hpcdl.workflow.studies.chaining import Awaited, awaited
from hpcdl.workflow.studies.repeating import Queueing


@pytest.fixture
def parent(terminal):
    """A run that waits in the queue as job 70."""
    (folder,) = preparing.prepare(terminal.study(), terminal.runs)
    assert submitting.submit([folder]) == ["70"]
    terminal.answer("squeue", "echo '70|PENDING|0|Priority'")
    return folder


def end(folder: RunFolder, state: RunState) -> None:
    """Let a run have ended, as the launcher writes it down."""
    store.note(folder, "observed", 1, state=state.value, reason="so it was")


def test_a_run_in_the_queue_is_waited_for_under_its_job_id(terminal, parent):
    name, site = parent.path.name, terminal.study().site
    for given, ending in (
        ("last", "ok"),
        (name, "ok"),
        (f"{name}:any", "any"),
        (str(parent.path), "ok"),
        (f"{name[:8]}:failed", "failed"),
        (f"last,{name}:ok", "ok"),
    ):
        assert awaited(given, terminal.runs, site) == Awaited((name,), After(ending, ("70",), (parent.path,)))


@pytest.mark.parametrize(
    ("state", "ending"),
    [
        (RunState.COMPLETED, "ok"),
        (RunState.COMPLETED, "any"),
        (RunState.FAILED, "failed"),
        (RunState.TIMEOUT, "failed"),
        (RunState.CANCELLED, "any"),
        (RunState.LOST, "any"),
    ],
)
def test_a_run_that_is_already_over_as_it_should_is_not_waited_for(terminal, parent, state, ending):
    terminal.answer("squeue", "true")
    end(parent, state)
    assert awaited(f"last:{ending}", terminal.runs, terminal.study().site) is None


@pytest.mark.parametrize(
    ("state", "ending", "words"),
    [
        (RunState.FAILED, "ok", "it is already over, and failed"),
        (RunState.CANCELLED, "ok", "it is already over, and cancelled"),
        (RunState.NODE_FAILED, "ok", "it is already over, and node failed"),
        (RunState.PAUSED, "ok", "it is already over, and paused"),
        (RunState.PAUSED, "failed", "it is already over, and paused"),
        (RunState.COMPLETED, "failed", "it is already over, and completed"),
    ],
)
def test_a_run_that_can_no_longer_end_so_is_refused(terminal, parent, state, ending, words):
    end(parent, state)
    with pytest.raises(UsageError, match=f"--after {parent.path.name}:{ending}: {words}") as caught:
        awaited(f"last:{ending}", terminal.runs, terminal.study().site)
    assert caught.value.hint


def test_a_run_that_nobody_knows_of_is_refused(terminal, parent):
    terminal.answer("squeue", "echo '70|SOMETHING_NEW|0|None'")
    with pytest.raises(UsageError, match="nobody knows how it stands: SOMETHING_NEW"):
        awaited("last", terminal.runs, terminal.study().site)
    terminal.answer("squeue", "true")
    end(parent, RunState.LOST)
    with pytest.raises(UsageError, match="nobody knows how it stands"):
        awaited("last", terminal.runs, terminal.study().site)


def test_a_run_that_was_never_submitted_is_refused(terminal):
    preparing.prepare(terminal.study(), terminal.runs)
    with pytest.raises(UsageError, match="it was never submitted"):
        awaited("last", terminal.runs, terminal.study().site)


def test_a_scheduler_that_cannot_be_asked_is_no_reason_to_guess(terminal, parent):
    terminal.answer("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SchedulerError, match="Unable to contact"):
        awaited("last", terminal.runs, terminal.study().site)


def test_a_run_of_another_site_is_refused_until_it_is_over(terminal, parent):
    with pytest.raises(UsageError, match="it is on site generic-slurm, unknown to the scheduler of local"):
        awaited("last", terminal.runs, terminal.study("local").site)
    end(parent, RunState.COMPLETED)
    assert awaited("last", terminal.runs, terminal.study("local").site) is None


def test_a_site_without_a_queue_cannot_wait(terminal):
    (folder,) = preparing.prepare(terminal.study("local", "training.steps=100000"), terminal.runs)
    submitting.submit([folder])
    try:
        with pytest.raises(UsageError, match="site local has no queue in which a run could wait"):
            awaited("last", terminal.runs, terminal.study("local").site)
    finally:
        submitting.cancel(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("last:okay", "'okay' is none of ok, failed, any"),
        ("last:", "'' is none of ok, failed, any"),
        ("nosuch", "there is no run 'nosuch'"),
        ("last,", "may mean|there is no run ''"),
        ("last;rm -rf x", "there is no run"),
        ("$(touch x)", "there is no run"),
    ],
)
def test_what_names_no_run_is_refused(terminal, parent, text, words):
    (other,) = preparing.prepare(terminal.study(), terminal.runs)
    submitting.submit([other])
    with pytest.raises(UsageError, match=words):
        awaited(text, terminal.runs, terminal.study().site)


@pytest.mark.parametrize("job_id", ["70\ntouch pwned", "70 --x", "-70", "", "70#", "$(x)", "70:`x`"])
def test_a_job_id_that_is_none_never_comes_near_a_script(terminal, parent, job_id):
    """The run folder may be another user's, and its events may say anything."""
    store.note(parent, "submitted", 1, job_id=job_id)
    with pytest.raises(UsageError, match="which is no job id"):
        awaited("last", terminal.runs, terminal.study().site)


def test_what_a_run_waits_for_is_written_down_and_told(terminal, parent):
    name, study = parent.path.name, terminal.study()
    waiting = awaited("last:any", terminal.runs, study.site)
    (child,) = preparing.prepare(study, terminal.runs, Queueing(waiting))
    submitting.submit([child], awaited=waiting)
    told = store.current(child)
    assert (told.after, told.ending, told.wait) == ((name,), "any", f"for {name} to end")
    event = json.loads(child.launcher_events.read_text().splitlines()[-1])
    assert (event["detail"]["after"], event["detail"]["ending"]) == ([name], "any")
    assert f"#SBATCH --dependency=afterany:{store.current(parent).job_id}\n" in child.script.read_text()


def test_a_run_that_vanished_while_it_waited_says_for_what(terminal, parent, monkeypatch):
    """A scheduler that keeps no history deletes a job whose condition can no longer come true."""
    study = terminal.study()
    waiting = awaited("last", terminal.runs, study.site)
    (child,) = preparing.prepare(study, terminal.runs, Queueing(waiting))
    submitting.submit([child], awaited=waiting)
    monkeypatch.setattr("hpcdl.runs.record.SUBMISSION_GRACE_S", 0.0)
    terminal.answer("squeue", "true")
    (told,) = following.refresh([child])
    assert told.state is RunState.LOST
    assert told.reason.endswith(f"it waited for {parent.path.name} to complete")


def test_resuming_waits_for_nobody(terminal, parent):
    study = terminal.study()
    waiting = awaited("last", terminal.runs, study.site)
    (child,) = preparing.prepare(study, terminal.runs, Queueing(waiting))
    submitting.submit([child], awaited=waiting)
    end(child, RunState.CANCELLED)
    submitting.resume(child)
    assert store.current(child).after == ()
