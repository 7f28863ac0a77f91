"""How a run ended is told once all witnesses could be heard, and what is known while one of them is away."""

from __future__ import annotations

import shutil

import pytest
from workflow.crowd import Clock, Slurm, end, runs

from hpcdl.errors import NoAnswerError, SchedulerError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.record import RunState
from hpcdl.schedulers import slurm as backend
from hpcdl.shell import Completed
from hpcdl.telemetry import RunEvent, append
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.states import following
from hpcdl.workflow.states.asking import Outside
from hpcdl.workflow.studies import preparing


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    found = Slurm(tmp_path)
    monkeypatch.setenv("PATH", f"{found.bin}:/usr/bin:/bin")
    return found


@pytest.fixture
def run(tmp_path, slurm):
    (folder,) = runs(tmp_path, 1)
    return folder


class Late(Clock):
    """A clock on which something is seen here after some seconds."""

    def __init__(self, after: float, what) -> None:
        super().__init__()
        self.time += 60  # after the grace of a submission
        self.due, self.what = self.time + after, what

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        if self.what and self.time >= self.due:
            self.what()
            self.what = None

    def outside(self) -> Outside:
        return Outside(now=lambda: self.time, sleep=self.sleep)


def paused(folder):
    append(folder.engine_events, RunEvent("paused", 0.0, 1, {"step": 7}))
    end(folder)


@pytest.mark.parametrize("words", ["COMPLETED", None])
def test_a_record_that_is_seen_late_is_waited_for(slurm, run, words):
    """Else a run that paused would be said to have completed, or to be lost."""
    if words:
        slurm.say("1", words)
    (told,) = following.refresh([run], Late(3.0, lambda: paused(run)).outside())
    assert told.state is RunState.PAUSED
    assert "stopped after step 7" in told.reason


def test_who_watches_waits_for_it_too(slurm, run):
    slurm.say("1", "COMPLETED")
    (*_, last) = following.watch(run, outside=Late(3.0, lambda: paused(run)).outside())
    assert last.attempt.state is RunState.PAUSED


@pytest.mark.parametrize(("words", "state"), [("FAILED", RunState.FAILED), (None, RunState.LOST)])
def test_a_record_that_never_comes_is_waited_for_once(slurm, run, words, state):
    if words:
        slurm.say("1", words, 7 << 8)
    clock = Late(1e9, None)
    before = clock.time
    assert following.refresh([run], clock.outside())[0].state is state
    waited = clock.time - before
    assert following.RECORD_LAG_S <= waited < following.RECORD_LAG_S + 1
    assert following.refresh([run], clock.outside())[0].state is state
    assert clock.time - before == waited


@pytest.mark.parametrize("words", ["CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "RUNNING", "PENDING"])
def test_nothing_is_waited_for_where_a_script_may_leave_none(slurm, run, words):
    slurm.say("1", words)
    clock = Late(1e9, None)
    before = clock.time
    following.refresh([run], clock.outside())
    assert clock.time == before


def test_many_that_vanish_are_waited_for_together(slurm, tmp_path):
    clock = Late(1e9, None)
    before, folders = clock.time, runs(tmp_path, 20)
    assert {each.state for each in following.refresh(folders, clock.outside())} == {RunState.LOST}
    assert clock.time - before < following.RECORD_LAG_S + 1


def test_while_the_scheduler_is_away_the_scripts_own_record_is_shown_and_nothing_noted(slurm, run):
    slurm.go_away()
    with pytest.raises(SchedulerError):
        following.refresh([run])
    assert following.last_known(run).state is RunState.QUEUED
    end(run, 7)
    told = following.last_known(run)
    assert (told.state, told.exit_code) == (RunState.FAILED, 7)
    assert store.current(run).state is RunState.QUEUED
    slurm.come_back()
    slurm.say("1", "TIMEOUT")
    assert following.refresh([run])[0].state is RunState.TIMEOUT


def test_a_word_of_slurms_that_nobody_knows_is_shown_and_ends_nothing(slurm, run):
    slurm.say("1", "EXPEDITING")
    (told,) = following.refresh([run])
    assert (told.state, told.reason) == (RunState.UNKNOWN, "EXPEDITING")
    assert not told.state.over


@pytest.fixture
def moved(terminal):
    """A run whose folder was moved after it was submitted; Slurm has job 70."""
    (folder,) = preparing.prepare(terminal.study(), terminal.runs)
    submitting.submit([folder])
    elsewhere = RunFolder(terminal.folder / "elsewhere" / "renamed")
    elsewhere.path.parent.mkdir()
    shutil.move(folder.path, elsewhere.path)
    return folder, elsewhere


def test_a_run_that_was_moved_is_asked_about_cancelled_and_resumed_by_its_path(terminal, moved):
    before, after = moved
    terminal.answer("squeue", "echo '70|PENDING|0|Priority'")
    assert following.refresh([after])[0].state is RunState.QUEUED
    terminal.answer("scancel", f'echo "$*" >"{terminal.folder}/cancelled"')
    submitting.cancel(after)
    assert (terminal.folder / "cancelled").read_text() == "70\n"
    terminal.answer("squeue", "echo '70|CANCELLED|0|None'")
    assert submitting.resume(after) == "71"
    script = after.script.read_text()
    assert str(after.path) in script
    assert str(before.path) not in script


def test_of_a_job_that_fails_as_its_folder_was_moved_that_is_said(terminal, moved, monkeypatch):
    monkeypatch.setattr(following, "RECORD_LAG_S", 0.0)
    before, after = moved
    terminal.answer("squeue", "echo '70|FAILED|256|NonZeroExitCode'")
    (told,) = following.refresh([after])
    assert told.state is RunState.FAILED
    assert told.reason.startswith(
        "FAILED (NonZeroExitCode); its folder was moved after it was submitted, from "
    )
    assert str(before.path) in told.reason


def test_a_run_that_fails_where_it_was_submitted_is_not_said_to_have_been_moved(slurm, run):
    store.note(run, "submitting", 1, job_name="run", place=str(run.path))
    slurm.say("1", "FAILED", 7 << 8)
    end(run, 7)
    assert "moved" not in following.refresh([run])[0].reason


@pytest.mark.parametrize(
    "words",
    [
        "Socket timed out on send/recv operation",
        "Unable to contact slurm controller (receive failure)",
        "Unable to contact slurm controller (connect failure)",
    ],
)
def test_a_slurmctld_that_is_away_or_did_not_say_that_it_took_the_job_has_not_refused_it(words):
    """A busy slurmctld has the job in its queue; one that is away for a minute would take it after that."""
    answer = Completed(1, "", f"sbatch: error: Batch job submission failed: {words}\n")
    with pytest.raises(NoAnswerError, match="Slurm gave no answer"):
        backend.submitted(answer)
