"""The state of a run is told by witnesses, and none of them is believed too easily."""

from dataclasses import replace
from signal import SIGTERM

import pytest

from hpcdl.runs.blame import Evidence, describe, first_failure
from hpcdl.runs.record import Attempt, RunState, Sighting, attempts, verdict
from hpcdl.schedulers.base import JobState
from hpcdl.telemetry import ExitRecord, RunEvent

SUBMITTED = Attempt(1, "7", RunState.RUNNING, submitted=1000.0)
LATER = 2000.0


def ended(rank, code, time=0.0, signal=None, exception=None, reason=None):
    return ExitRecord(rank, f"n{rank}", time, code, signal, exception, reason)


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.RUNNING, RunState.UNKNOWN])
def test_verdict_believes_the_scheduler_while_the_job_lives(state):
    after = verdict(SUBMITTED, Sighting(state, "Resources"), Evidence(), LATER)
    assert (after.state, after.reason) == (state, "Resources")


def test_verdict_of_a_scheduler_that_cannot_tell_gives_way_to_the_scripts_record():
    """A run of another machine, seen through a shared file system: only its folder knows the end."""
    unknown = Sighting(RunState.UNKNOWN, "runs on elsewhere")
    assert verdict(SUBMITTED, unknown, Evidence(0), LATER).state is RunState.COMPLETED
    assert verdict(SUBMITTED, unknown, Evidence(), LATER).state is RunState.UNKNOWN


def test_verdict_gone_without_a_record_is_lost_not_completed():
    after = verdict(SUBMITTED, None, Evidence(expected_ranks=2), LATER)
    assert after.state is RunState.LOST
    assert "no exit record" in after.reason


def test_verdict_just_submitted_and_not_visible_yet_stays_as_it_was():
    assert verdict(SUBMITTED, None, Evidence(), SUBMITTED.submitted + 1) == SUBMITTED


def test_verdict_gone_with_the_scripts_record_says_how_it_ended():
    assert verdict(SUBMITTED, None, Evidence(0), LATER).state is RunState.COMPLETED
    failed = verdict(SUBMITTED, None, Evidence(7, [ended(1, 7)], 2), LATER)
    assert (failed.state, failed.exit_code) == (RunState.FAILED, 7)


def test_verdict_of_a_run_that_stopped_as_asked_is_paused_not_completed():
    evidence = Evidence(0, [ended(0, 0), ended(1, 0)], 2, paused=40)
    for sighting in (None, Sighting(RunState.COMPLETED, "COMPLETED", 0)):
        after = verdict(SUBMITTED, sighting, evidence, LATER)
        assert (after.state, after.exit_code) == (RunState.PAUSED, 0)
        assert "stopped after step 40, saved" in after.reason
    assert RunState.PAUSED.over
    assert not RunState.PAUSED.failed


def test_verdict_of_a_program_that_was_warned_and_ended_well_is_paused_for_nobody_knows_more():
    evidence = Evidence(0, [ended(0, 0), ended(1, 0)], 2, warned="SIGUSR1")
    attempt = verdict(SUBMITTED, None, evidence, LATER)
    assert (attempt.state, attempt.exit_code) == (RunState.PAUSED, 0)
    assert "sent SIGUSR1, and ended well" in attempt.reason


def test_verdict_of_a_run_that_paused_too_late_is_its_true_end():
    timeout = verdict(SUBMITTED, Sighting(RunState.TIMEOUT, "TIMEOUT"), Evidence(None, paused=40), LATER)
    assert timeout.state is RunState.TIMEOUT


def test_verdict_reports_the_culprits_code_not_the_launchers():
    """srun answers 143 after it tore the others down; the rank that began it exited with 7."""
    evidence = Evidence(
        143, [ended(0, 143, 2.0, SIGTERM), ended(1, 7, 1.0, exception="ValueError", reason="bad")], 2
    )
    after = verdict(SUBMITTED, Sighting(RunState.FAILED, "FAILED", 143), evidence, LATER)
    assert after.exit_code == 7
    assert after.reason == "rank 1 on n1: ValueError: bad"


def test_verdict_scheduler_says_completed_but_the_script_failed():
    after = verdict(SUBMITTED, Sighting(RunState.COMPLETED, "", 0), Evidence(3), LATER)
    assert (after.state, after.exit_code) == (RunState.FAILED, 3)


def test_verdict_cancelled_by_the_user_is_not_a_failure():
    asked = attempts(
        [
            RunEvent("submitted", 1.0, 1, {"job_id": "7"}),
            RunEvent("cancel requested", 2.0, 1),
        ]
    )[0]
    assert verdict(asked, None, Evidence(143), LATER).state is RunState.CANCELLED
    assert verdict(asked, None, Evidence(), LATER).state is RunState.CANCELLED


@pytest.mark.parametrize(("past", "state"), [(True, RunState.CANCELLED), (False, RunState.UNKNOWN)])
def test_verdict_of_a_job_that_runs_in_accounting_for_ever_is_ended_by_a_cancel(past, state):
    """Cancelling it changed nothing, and resuming it asked for a cancel."""
    asked = replace(SUBMITTED, cancel_requested=True)
    runaway = Sighting(RunState.UNKNOWN, "RUNNING, by accounting alone", past=past)
    assert verdict(asked, runaway, Evidence(), LATER).state is state
    assert verdict(SUBMITTED, runaway, Evidence(), LATER).state is RunState.UNKNOWN


@pytest.mark.parametrize("state", [RunState.TIMEOUT, RunState.NODE_FAILED, RunState.PREEMPTED])
def test_verdict_keeps_the_schedulers_word_for_how_it_ended(state):
    """TIMEOUT may come with exit code 0: the state counts, then the code."""
    assert verdict(SUBMITTED, Sighting(state, "", 0), Evidence(0), LATER).state is state


def test_first_failure_is_the_earliest_in_time_not_the_lowest_rank():
    evidence = Evidence(1, [ended(0, 1, 5.0), ended(3, 1, 4.0), ended(1, 143, 1.0, SIGTERM)], 4)
    assert first_failure(evidence).rank == 3


def test_first_failure_is_the_rank_without_a_record_if_all_others_were_told_to_end():
    """kill -9 leaves no time to write; the others get SIGTERM and say so."""
    evidence = Evidence(137, [ended(0, 143, 2.0, SIGTERM), ended(2, 143, 2.0, SIGTERM)], 3)
    culprit = first_failure(evidence)
    assert (culprit.rank, culprit.exit_code) == (1, 137)


def test_first_failure_is_not_a_rank_that_lost_its_peer():
    """The survivor of a kill -9 raises because the connection broke; it is a witness, not the culprit."""
    evidence = Evidence(137, [ended(0, 1, 2.0, exception="PeerLostError", reason="connection closed")], 2)
    assert first_failure(evidence).rank == 1


def test_first_failure_of_a_clean_run_is_nobody():
    assert first_failure(Evidence(0, [ended(0, 0), ended(1, 0)], 2)) is None


def test_attempts_fold_events_in_order():
    events = [
        RunEvent("created", 0.0),
        RunEvent("submitted", 1.0, 1, {"job_id": "7"}),
        RunEvent("observed", 2.0, 1, {"state": "failed", "exit_code": 1, "reason": "r"}),
        RunEvent("submitted", 3.0, 2, {"job_id": "8"}),
        RunEvent("something new", 4.0, 2, {"x": 1}),
    ]
    first, second = attempts(events)
    assert (first.state, first.exit_code, first.job_id) == (RunState.FAILED, 1, "7")
    assert (second.state, second.job_id) == (RunState.QUEUED, "8")


def observed(*states):
    seen = [RunEvent("observed", 2.0 + n, 1, {"state": state}) for n, state in enumerate(states)]
    (attempt,) = attempts([RunEvent("submitted", 1.0, 1, {"job_id": "7"}), *seen])
    return attempt.state


@pytest.mark.parametrize("late", ["queued", "running", "unknown", "a word of later"])
def test_a_late_answer_takes_no_end_back(late):
    """The job noted its end while who had asked Slurm just before it had yet to note that it ran.

    The next attempt was newer by then, so nobody asked again, and this one ran for ever.
    """
    assert observed("running", "paused", late) is RunState.PAUSED
    assert observed("running", "paused", late, "timeout") is RunState.TIMEOUT


def test_a_run_that_was_lost_may_be_found():
    assert observed("lost", "running") is RunState.RUNNING


@pytest.mark.parametrize("state", JobState)
def test_every_state_of_a_job_is_a_state_of_a_run(state):
    """Schedulers and runs do not know each other; the workflow carries states over by their words."""
    assert RunState(state.value).over == state.over


def test_describe_says_why_in_one_line():
    assert describe(ended(0, 1, exception="ValueError", reason="bad value")) == "ValueError: bad value"
    assert describe(ended(0, 137, signal=9)) == "killed by SIGKILL"
    assert describe(ended(0, 3)) == "exit code 3"
