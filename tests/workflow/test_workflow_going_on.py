"""Who carries a run on: anybody may try at any time, and exactly one does."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hpcdl.errors import NoAnswerError, SchedulerError, SiteError, UsageError
from hpcdl.run_folder import NEARLY_OVER
from hpcdl.runs import claims, spending, store
from hpcdl.runs.chains.deciding import GoOn, Stop
from hpcdl.runs.claimant import Claimant
from hpcdl.runs.record import RunState
from hpcdl.schedulers.base import After
from hpcdl.schedulers.directives import account, spec
from hpcdl.telemetry import ExitFile, ExitRecord, RunEvent, append
from hpcdl.workflow.jobs import going_on, submitting
from hpcdl.workflow.states import following, recognising
from hpcdl.workflow.states.asking import Outside
from hpcdl.workflow.states.recognising import NOT_ASKED
from hpcdl.workflow.studies import preparing, reshaping
from hpcdl.workflow.studies.chaining import Awaited
from hpcdl.workflow.studies.repeating import Queueing
from hpcdl.workflow.studies.reshaping import Change

OF_SPEC = spec("resources.account")
SQUEUE = "printf '%-40s|%s|0|None\\n' {job} {state}"


@pytest.fixture
def run(terminal):
    """A run whose first attempt is job 70."""
    return submitted(terminal)


def near(terminal, more=""):
    site = terminal.folder / "near.yaml"
    site.write_text(f"name: near\nextends: generic-slurm\nscheduler: {{poll_seconds: 0.2{more}}}\n")
    return site


def submitted(terminal, *settings, more=""):
    site = near(terminal, more)
    (folder,) = preparing.prepare(terminal.study(str(site), *settings), terminal.runs)
    submitting.submit([folder])
    return folder


def pause(folder, attempt, *, saved=True, by_hand=False):
    """Leave what an attempt leaves that saved itself before its limit."""
    for kind, detail in (("started", {"step": 0}), ("checkpoint", {"step": 3}), ("paused", {"step": 3})):
        if saved or kind != "checkpoint":
            append(folder.engine_events, RunEvent(kind, time.time(), attempt, detail))
    folder.request(attempt).write_text("please\n" if by_hand else f"{NEARLY_OVER}\n")
    folder.job_exit(attempt).parent.mkdir(parents=True, exist_ok=True)
    folder.job_exit(attempt).write_text('{"exit_code": 0}')


def over(terminal, job_id, state="COMPLETED"):
    """What squeue says when it is asked about jobs; of a job by its name it knows nothing."""
    told = SQUEUE.format(job=job_id, state=state)
    terminal.answer("squeue", f'case "$*" in *--name=*) ;; *) {told} ;; esac')


def test_a_run_that_saved_itself_goes_on_and_one_that_runs_is_left_alone(terminal, run):
    over(terminal, 70, "RUNNING")
    assert going_on.advance(run) == going_on.Step(Stop("it is running"))
    pause(run, 1)
    over(terminal, 70)
    step = going_on.advance(run)
    assert (step.attempt, step.job_id, step.decision) == (
        2,
        "71",
        GoOn("it saved itself before its walltime was over"),
    )
    assert [each.state for each in store.history(run)] == [RunState.PAUSED, RunState.QUEUED]
    assert "hpcdl_attempt=2\n" in run.script.read_text()
    assert "logs/attempt-2/job.log" in run.script.read_text()


def test_of_many_that_try_at_once_one_submits_and_the_others_say_who_does(terminal, run):
    pause(run, 1)
    over(terminal, 70)
    command = [sys.executable, "-m", "hpcdl", "advance", str(run.path)]
    many = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = [each.communicate(timeout=120)[0] for each in many]
    assert [each.returncode for each in many] == [0] * 6, said
    assert len(terminal.submitted()) == 2, said
    assert sum("goes on as attempt 2, job 71" in text for text in said) == 1


def test_threads_of_one_process_submit_once(terminal, run):
    pause(run, 1)
    over(terminal, 70)
    steps = []
    threads = [threading.Thread(target=lambda: steps.append(going_on.advance(run))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(step.job_id or "" for step in steps) == "71"
    assert len(terminal.submitted()) == 2


def test_a_job_that_carries_its_run_on_leaves_nothing_of_itself_in_the_next(terminal, run, monkeypatch):
    """sbatch takes what it finds in the environment for options, which count more than the script's.

    Only which cluster it is stays. That variable once failed this test wherever a real Slurm had run before it.
    """
    pause(run, 1)
    for name, value in (("SLURM_CONF", "/etc/slurm.conf"), ("SLURM_JOB_ID", "70"), ("SLURM_NTASKS", "9"), ("SBATCH_TIMELIMIT", "1"),
                        ("HPCDL_ATTEMPT", "1"), ("RANK", "0"), ("SLURM_ARRAY_TASK_ID", "4")):  # fmt: skip
        monkeypatch.setenv(name, value)
    terminal.answer("sbatch", f'[ "$1" = --test-only ] || {{ env >"{terminal.folder}/seen"; echo 71; }}')
    step = going_on.advance_from_job(run, 1, "well")
    assert step.job_id == "71"
    seen = dict(line.partition("=")[::2] for line in (terminal.folder / "seen").read_text().splitlines())
    left = [name for name in seen if name.startswith(("SLURM_", "SBATCH_", "HPCDL_ATTEMPT", "RANK"))]
    assert left == ["SLURM_CONF"]


PAYS = ", account_variable: SBATCH_ACCOUNT, mandatory: [account]"


def test_a_job_carries_on_at_the_cost_of_who_paid_for_it_although_it_has_not_the_variable(
    terminal, monkeypatch
):
    """``SBATCH_ACCOUNT`` is none of what a submission hands on, and cron never had it."""
    monkeypatch.setenv("SBATCH_ACCOUNT", "m1")
    run = submitted(terminal, more=PAYS)
    monkeypatch.delenv("SBATCH_ACCOUNT")
    pause(run, 1)
    assert going_on.advance_from_job(run, 1, "well").job_id == "71"
    assert "#SBATCH --account=m1\n" in run.script.read_text()


def test_the_account_of_the_environment_is_said_to_be_of_the_variable_also_when_it_has_been_kept(
    terminal, monkeypatch
):
    monkeypatch.setenv("SBATCH_ACCOUNT", "m1")
    site = near(terminal, PAYS)
    study = terminal.study(str(site))
    lines = preparing.explained(preparing.draft(study, terminal.runs, Queueing()), study)
    (line,) = [line for line in lines if "--account" in line.text]
    assert (line.text, str(line.origin)) == (
        "#SBATCH --account=m1",
        "site scheduler.account_variable ($SBATCH_ACCOUNT)",
    )
    assert line.place.startswith(f"{site}:")
    run = submitted(terminal, more=PAYS)
    monkeypatch.delenv("SBATCH_ACCOUNT")
    for wanted, origin in (
        (Change(("chain.attempts=3",)), line.origin),
        (Change(("resources.account=m2",)), OF_SPEC),
    ):
        payer = account(reshaping.draft(run, reshaping.reshaped(run, wanted)))
        assert payer is not None
        assert payer[1] == origin


@pytest.mark.parametrize("submit", [going_on.advance, submitting.resume])
def test_an_attempt_without_a_script_is_not_claimed(terminal, run, monkeypatch, submit):
    """A claim is never given back: it would leave an attempt of which nothing comes."""
    pause(run, 1)
    over(terminal, 70)
    (terminal.folder / "templates").mkdir()
    (terminal.folder / "templates" / "slurm.sh.j2").write_text("{{ nothing }}")
    monkeypatch.setenv("HPCDL_PATH", str(terminal.folder))
    with pytest.raises(SiteError, match=r"template slurm\.sh\.j2"):
        submit(run)
    assert list(claims.claims(run)) == [1]


def test_a_job_that_was_told_to_end_at_its_limit_is_timed_out_before_its_scheduler_says_so(terminal, run):
    append(run.engine_events, RunEvent("checkpoint", time.time(), 1, {"step": 2}))
    run.job_exit(1).write_text('{"exit_code": 143}')
    assert going_on.advance_from_job(run, 1, "at-limit").job_id == "71"
    assert store.history(run)[0].state is RunState.TIMEOUT


@pytest.mark.parametrize(
    ("exception", "goes_on"), [("HangError", True), ("BadNodeError", True), ("ConnectionError", False)]
)
def test_a_job_that_failed_carries_on_if_the_engine_ended_it_itself(terminal, run, exception, goes_on):
    ExitFile(run.rank_exit(1, 1)).write(ExitRecord(1, "n2", time.time(), 1, None, exception, "it was"))
    run.job_exit(1).write_text('{"exit_code": 143}')
    step = going_on.advance_from_job(run, 1, "badly")
    assert isinstance(step.decision, GoOn if goes_on else Stop)
    assert step.job_id == ("71" if goes_on else None)
    assert store.history(run)[0].state is (RunState.FAILED if goes_on else RunState.QUEUED)


def test_a_job_that_finished_its_steps_or_was_cancelled_does_not_carry_on(terminal, run):
    run.job_exit(1).write_text('{"exit_code": 0}')
    assert going_on.advance_from_job(run, 1, "well").decision == Stop("it has completed")
    other = submitted(terminal)
    pause(other, 1)
    store.note(other, "cancel requested", 1)
    assert going_on.advance_from_job(other, 1, "well").decision == Stop("somebody wanted it to stop")
    assert len(terminal.submitted()) == 2


def test_a_pause_that_somebody_asked_for_by_hand_ends_the_chain(terminal, run):
    pause(run, 1, by_hand=True)
    over(terminal, 70)
    assert going_on.advance(run).decision == Stop("somebody wanted it to stop")


def test_an_attempt_that_is_not_the_newest_any_more_carries_nothing_on(terminal, run):
    pause(run, 1)
    going_on.advance_from_job(run, 1, "well")
    with pytest.raises(UsageError, match="attempt 1 is not the newest any more, which is 2"):
        going_on.advance_from_job(run, 1, "well")


def test_two_attempts_without_a_step_end_the_chain_which_is_noted_once_and_resume_goes_on(terminal, run):
    for attempt, job_id in ((1, "70"), (2, "71")):
        pause(run, attempt, saved=False)
        over(terminal, job_id)
        step = going_on.advance(run)
    assert step.decision == Stop("its newest 2 attempts saved no step, and chain.without_progress is 2")
    assert going_on.advance(run).decision == step.decision
    (ended,) = [event for event in store.events(run) if event.kind == "chain ended"]
    assert (ended.attempt, ended.detail["reason"]) == (2, step.decision.why)
    assert submitting.resume(run) == "72"


def test_a_run_of_one_attempt_stays_paused_as_ever(terminal):
    run = submitted(terminal, "chain.attempts=1")
    assert "hpcdl advance" not in run.script.read_text()
    pause(run, 1)
    over(terminal, 70)
    assert "chain.attempts is 1" in going_on.advance(run).decision.why
    assert [shot.attempt.state for shot in going_on.watch(run)] == [RunState.PAUSED]


def test_who_watches_goes_on_to_the_next_attempt_that_it_submits_itself(terminal, run):
    pause(run, 1)
    over(terminal, 70)
    seen = []
    for shot in going_on.watch(run):
        seen.append((shot.attempt.number, shot.attempt.state))
        if shot.attempt.number == 2 and not run.job_exit(2).exists():
            run.job_exit(2).write_text('{"exit_code": 0}')
            over(terminal, 71)
    assert list(dict.fromkeys(seen)) == [
        (1, RunState.PAUSED),
        (2, RunState.QUEUED),
        (2, RunState.COMPLETED),
    ]
    assert len(terminal.submitted()) == 2


def test_a_submission_that_was_broken_off_is_taken_up_again_by_advance(terminal, run):
    """As where a job is killed between its claim and its sbatch."""
    pause(run, 1)
    over(terminal, 70)
    submitting.refresh([run])
    dead(run, 2)
    step = going_on.advance(run)
    assert (step.attempt, step.job_id) == (3, "71")
    assert claims.starts(run) == {2: "nobody"}


def dead(folder, attempt):
    """The claim of a process that is no more."""
    assert claims.claim(folder, attempt, f"process 4194304-1@{os.uname().nodename} 00000000")


def test_who_watches_takes_up_a_submission_that_was_broken_off(terminal, run):
    """A job claims the next attempt in its last seconds, and is killed before its sbatch."""
    pause(run, 1)
    over(terminal, 70)
    submitting.refresh([run])
    dead(run, 2)
    seen = []
    for attempt in going_on.attempts_of(run):
        seen.append((attempt.number, attempt.state, attempt.reason))
        if attempt.number == 3 and not run.job_exit(3).exists():
            run.job_exit(3).write_text('{"exit_code": 0}')
            over(terminal, 71)
    assert seen[0] == (2, RunState.PREPARED, NOT_ASKED)
    assert seen[-1] == (3, RunState.COMPLETED, "")
    assert claims.starts(run) == {2: "nobody"}
    assert len(terminal.submitted()) == 2


def test_who_watches_follows_a_job_that_comes_in_although_its_submission_was_broken_off(
    terminal, run, monkeypatch
):
    """It waited three minutes for the attempt after that, and died of it while the run was well."""
    monkeypatch.setattr(recognising, "SUBMISSION_GRACE_S", 0.0)
    pause(run, 1)
    over(terminal, 70)
    submitting.refresh([run])
    dead(run, 2)
    store.note(run, "submitting", 2, job_name=f"{run.path.name}.2")
    terminal.answer("squeue", "true")
    pauses = []
    watched = going_on.attempts_of(run, 0.5, Outside(sleep=pauses.append))
    assert next(watched).reason == recognising.NOT_KNOWN
    run.start(2).parent.mkdir()
    run.start(2).symlink_to("71")
    over(terminal, 71, "RUNNING")
    pauses.clear()
    attempt = next(watched)
    assert (attempt.number, attempt.job_id, attempt.reason, pauses) == (2, "71", "", [0.5])


def test_who_watches_a_first_attempt_whose_submission_was_broken_off_is_told(terminal):
    (run,) = preparing.prepare(terminal.study(), terminal.runs)
    dead(run, 1)
    with pytest.raises(SchedulerError, match=r"attempt 1 was claimed by process .* nothing came of it"):
        list(going_on.attempts_of(run))
    assert terminal.submitted() == []


def test_who_watches_a_submission_that_goes_on_waits_and_asks_no_scheduler(terminal, run):
    pause(run, 1)
    over(terminal, 70)
    submitting.refresh([run])
    terminal.answer("squeue", f'echo asked >>"{terminal.folder}/asked"')
    with subprocess.Popen(["sleep", "60"]) as somebody:
        mark = Claimant(somebody.pid, started(somebody.pid), os.uname().nodename).mark
        assert claims.claim(run, 2, mark)
        store.note(run, "submitting", 2, job_name=f"{run.path.name}.2")
        watched = following.attempts_of(run, 0)
        for _ in range(5):
            attempt = next(watched)
            assert (attempt.state, attempt.reason[:24]) == (RunState.PREPARED, "being submitted by proce")
        somebody.kill()
    assert not (terminal.folder / "asked").exists()


def started(process):
    """When it was, in clock ticks since the host was booted."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])


def test_who_watches_a_broken_submission_asks_less_and_less_while_the_scheduler_is_away(terminal, run):
    pause(run, 1)
    over(terminal, 70)
    submitting.refresh([run])
    dead(run, 2)
    store.note(run, "submitting", 2, job_name=f"{run.path.name}.2")
    terminal.answer("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    slept = []
    watched = following.attempts_of(run, outside=Outside(sleep=slept.append))
    for _ in range(5):
        attempt = next(watched)
        assert (attempt.state, "Slurm does not answer" in attempt.reason) == (RunState.PREPARED, True)
    assert slept == [0.4, 0.8, 1.6, 3.2]


def test_who_watches_asks_about_a_job_that_its_start_alone_tells_of_by_its_clusters_name(terminal):
    (run,) = preparing.prepare(terminal.study(str(near(terminal, ", cluster: east"))), terminal.runs)
    dead(run, 1)
    run.start(1).parent.mkdir()
    run.start(1).symlink_to("71")
    terminal.answer("squeue", "echo '71;east|RUNNING|0|None'")
    assert next(following.attempts_of(run)).job_id == "71;east"


def test_a_claim_of_which_nothing_came_ends_no_chain(terminal, run):
    """What counts is why the attempt before it ended."""
    ExitFile(run.rank_exit(1, 1)).write(ExitRecord(1, "n2", time.time(), 1, None, "HangError", "it stood"))
    run.job_exit(1).write_text('{"exit_code": 143}')
    over(terminal, 70, "FAILED")
    submitting.refresh([run])
    before = going_on.outlook(run, store.current(run))
    dead(run, 2)
    assert going_on.outlook(run, store.current(run)) == before == GoOn("a rank made no progress any more")
    assert going_on.advance(run).attempt == 3


def test_an_attempt_that_a_job_withheld_by_being_run_again_is_none_without_progress(terminal, run):
    """It stands in the queue, and runs nothing when its turn comes."""
    pause(run, 1)
    over(terminal, 70)
    assert going_on.advance(run).job_id == "71"
    run.start(1).parent.mkdir()
    for number in (1, 2, 3):
        run.start(number).symlink_to("70")
    run.claim(3).symlink_to("requeued 70")
    over(terminal, 70, "PREEMPTED")
    (newest,) = submitting.refresh([run], fresh=True)
    if not newest.state.over:  # the answer is older than its life
        (newest,) = submitting.refresh([run], fresh=True)
    assert (newest.number, newest.state) == (3, RunState.PREEMPTED)
    assert going_on.outlook(run, newest) == GoOn("a job of higher priority took its nodes")
    withheld = store.history(run)[1]
    assert (withheld.state, withheld.given_up) == (RunState.CANCELLED, True)
    assert withheld.reason.startswith("job 70 was run again before")
    assert spending.node_hours(run, [withheld], time.time() + 3600) is None


def test_the_verb_answers_in_words_and_refuses_an_end_that_is_none(terminal, run):
    command = [sys.executable, "-m", "hpcdl", "advance", str(run.path)]
    over(terminal, 70, "RUNNING")
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (answer.returncode, answer.stdout) == (0, f"{run.path.name} does not go on now: it is running\n")
    wrong = [*command, "--attempt", "1", "--ended", "sadly"]
    answer = subprocess.run(wrong, capture_output=True, text=True, check=False, timeout=120)
    assert (answer.returncode, "--ended sadly: it is none of well, badly, at-limit" in answer.stderr) == (
        2,
        True,
    )


def test_status_tells_whether_a_run_goes_on(terminal, run):
    pause(run, 1)
    over(terminal, 70)
    command = [sys.executable, "-m", "hpcdl", "status", str(run.path), "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert json.loads(answer.stdout)["chain"] == {
        "goes_on": True,
        "reason": "it saved itself before its walltime was over",
        "attempts": 1,
        "of": 50,
    }


def test_a_job_that_waited_for_a_run_ends_where_that_only_paused(terminal, run):
    after = After("ok", ("70",), (run.path,))
    (child,) = preparing.prepare(
        terminal.study("generic-slurm", "resources.nodes=1"),
        terminal.runs,
        Queueing(Awaited((run.path.name,), after)),
    )
    started = terminal.folder / "started"
    terminal.answer("srun", f"touch {started}")

    def start():
        return subprocess.run(
            ["bash", str(child.script)], capture_output=True, text=True, check=False, timeout=120
        )

    pause(run, 1)
    answer = start()
    assert (answer.returncode, started.exists()) == (75, False), answer.stderr
    assert f"{run.path.name} has not completed, although its job ended with 0" in answer.stdout
    assert json.loads(child.job_exit(1).read_text()) == {"exit_code": 75}
    run.engine_events.unlink()
    child.start(1).unlink()
    assert (start().returncode, started.exists()) == (0, True)


# --- while the scheduler is away

AWAY = "echo 'allocation failure: Unable to contact slurm controller (connect failure)' >&2; exit 1"


@pytest.fixture
def slurmctld(terminal, run, monkeypatch):
    """Lets it go away and come back; job 70 is over, and jobs that it does not know have no name."""
    monkeypatch.setattr(recognising, "SUBMISSION_GRACE_S", 0.0)
    usual = (terminal.programs / "sbatch").read_text().partition("\n")[2]

    def is_there(*, there: bool) -> None:
        terminal.answer("sbatch", usual if there else AWAY)
        over(terminal, 70) if there else terminal.answer("squeue", AWAY)

    is_there(there=True)
    pause(run, 1)
    return is_there


def test_a_scheduler_that_is_away_when_a_job_ends_does_not_end_the_chain(terminal, run, slurmctld):
    """The attempt was called refused, and the run did not go on for ever."""
    slurmctld(there=False)
    with pytest.raises(NoAnswerError, match="Slurm does not answer") as caught:
        going_on.advance_from_job(run, 1, "well")
    assert f"hpcdl resume {run.path.name} submits it if it is not there" in caught.value.hint
    for _ in range(2):
        with pytest.raises(SchedulerError, match="Slurm does not answer"):
            going_on.advance(run)
    assert store.current(run).number == 2
    assert store.current(run).state is RunState.PREPARED
    slurmctld(there=True)
    step = going_on.advance(run)
    assert (step.attempt, step.job_id) == (3, "71")
    assert len(terminal.submitted()) == 2


def test_who_watches_waits_longer_and_longer_for_a_scheduler_that_is_away(terminal, run, slurmctld):
    """The watcher had died of it, and the run stood still."""
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            slurmctld(there=True)
        if len(terminal.submitted()) == 2:
            raise KeyboardInterrupt

    watched = going_on.attempts_of(run, 0.5, Outside(sleep=sleep))
    assert next(watched).state is RunState.PAUSED
    slurmctld(there=False)
    with pytest.raises(KeyboardInterrupt):
        list(watched)
    assert pauses[:3] == [0.2, 0.4, 0.8]
    assert store.current(run).job_id == "71"


def test_who_waits_for_somebody_elses_submission_is_heard(terminal, run):
    """For three minutes ``watch`` had stood still, and q had done nothing."""
    pause(run, 1)
    over(terminal, 70)
    assert claims.claim(run, 2, f"process {os.getppid()}-1@login9 00000000")

    def sleep(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(going_on.attempts_of(run, 0.5, Outside(sleep=sleep)))


# --- where the run folder cannot be written


@pytest.fixture
def read_only(run, monkeypatch):
    """That run, seen by somebody who cannot write its folder, or by its owner on a full disk."""

    def refused(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def close():
        monkeypatch.setattr(store, "append", refused)
        monkeypatch.setattr(claims, "_made", refused)

    return close


def test_who_cannot_note_the_end_of_a_run_is_told_of_it(terminal, run, read_only):
    """It was told ``cannot write …/events.launcher.jsonl`` in place of how the run ended."""
    over(terminal, 70, "FAILED")
    run.job_exit(1).parent.mkdir(parents=True, exist_ok=True)
    run.job_exit(1).write_text('{"exit_code": 1}')
    read_only()
    assert [each.state for each in going_on.attempts_of(run)] == [RunState.FAILED]
    assert going_on.advance(run).decision == Stop("what ended it would end another attempt too")


def test_who_cannot_submit_the_next_attempt_is_told_why(terminal, run, read_only):
    """That was told as if somebody else were at it, and who stayed with a sweep was told nothing, for ever."""
    over(terminal, 70, "TIMEOUT")
    read_only()
    with pytest.raises(UsageError, match=r"cannot write .*: Permission denied"):
        going_on.advance(run)


def test_who_cannot_submit_the_next_attempt_does_not_wait_for_it(terminal, run, read_only):
    """It waited three minutes for a claim that nobody had made, and then looked in vain how old that was."""
    over(terminal, 70, "TIMEOUT")
    read_only()
    pauses = []
    *_, last = going_on.attempts_of(run, 0.5, Outside(sleep=pauses.append))
    assert last.state is RunState.TIMEOUT
    assert last.reason.endswith(f"it goes on, but not from here: cannot write {run.path}: Permission denied")
    assert pauses == []


# --- cancelled


def test_a_run_that_is_cancelled_between_two_attempts_does_not_go_on(terminal, run):
    """It was told to be over already, and the next attempt came all the same."""
    over(terminal, 70, "PREEMPTED")
    command = [sys.executable, "-m", "hpcdl", "cancel", str(run.path)]
    name = run.path.name
    for _ in range(2):
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert answer.stdout == (
            f"{name} is preempted, and does not go on by itself; hpcdl resume {name} goes on\n"
        )
    assert going_on.advance(run).decision == Stop("somebody wanted it to stop")
    assert submitting.resume(run) == "71"


def test_a_run_whose_next_submission_was_broken_off_is_cancelled_too(terminal, run, monkeypatch):
    monkeypatch.setattr(recognising, "SUBMISSION_GRACE_S", 0.0)
    over(terminal, 70, "PREEMPTED")
    submitting.refresh([run])
    assert claims.claim(run, 2, f"process 4194304-1@{os.uname().nodename} 00000000")
    assert submitting.cancel(run).state is RunState.PREEMPTED
    assert going_on.advance(run).decision == Stop("somebody wanted it to stop")
    assert len(terminal.submitted()) == 1


def test_a_cancel_that_comes_while_the_next_attempt_is_claimed_keeps_it_from_the_scheduler(
    terminal, run, monkeypatch
):
    over(terminal, 70, "PREEMPTED")

    def cancelled_meanwhile(folder, attempt):
        number = next_attempt(folder, attempt)
        store.note(folder, "cancel requested", 1)
        return number

    next_attempt = going_on.next_attempt
    monkeypatch.setattr(going_on, "next_attempt", cancelled_meanwhile)
    assert going_on.advance(run).decision == Stop("somebody wanted it to stop")
    assert len(terminal.submitted()) == 1


def test_a_cancel_that_comes_while_the_next_attempt_is_submitted_withdraws_its_job(
    terminal, run, monkeypatch
):
    """Between the look for a cancel and sbatch's answer lie minutes: the run was told to end, and went on."""
    over(terminal, 70, "PREEMPTED")
    terminal.answer("scancel", f'echo "$*" >>"{terminal.folder}/cancelled"')

    def cancelled_meanwhile(folders, attempt):
        store.note(folders[0], "cancel requested", 1)
        return hand_over(folders, attempt)

    hand_over = going_on.hand_over
    monkeypatch.setattr(going_on, "hand_over", cancelled_meanwhile)
    assert going_on.advance(run).decision == Stop("somebody wanted it to stop")
    assert (terminal.folder / "cancelled").read_text() == "71\n"
    assert store.current(run).cancel_requested


def test_a_cancel_of_a_job_that_has_just_submitted_the_next_says_so(terminal, run, monkeypatch):
    """It said that it had asked for the end of the first, and the second ran."""
    over(terminal, 70, "RUNNING")
    terminal.answer("scancel", "true")

    def submitted_meanwhile(folders, **asked):
        seen = refresh(folders, **asked)
        pause(run, 1)
        assert going_on.advance_from_job(run, 1, "well").job_id == "71"
        return seen

    refresh = submitting.refresh
    monkeypatch.setattr(submitting, "refresh", submitted_meanwhile)
    with pytest.raises(UsageError, match="attempt 2 is being submitted by process") as caught:
        submitting.cancel(run)
    assert "once more" in caught.value.hint


def test_a_script_that_was_started_by_hand_is_not_said_to_be_cancelled(terminal):
    """The scheduler was said to have been asked to cancel job None."""
    (folder,) = preparing.prepare(terminal.study(), terminal.runs)
    folder.start(1).parent.mkdir()
    folder.start(1).symlink_to("process 12 of n4")
    with pytest.raises(UsageError, match=r"no job to cancel: .* started by hand: process 12 of n4"):
        submitting.cancel(folder)
    assert not store.current(folder).cancel_requested


def test_a_cancel_that_comes_too_late_for_the_next_attempt_says_so(terminal, run):
    over(terminal, 70, "PREEMPTED")
    submitting.refresh([run])
    assert claims.claim(run, 2, "process 47-1@login9 00000000")
    with pytest.raises(UsageError, match="attempt 2 is being submitted by process 47 on login9") as caught:
        submitting.cancel(run)
    assert "once more" in caught.value.hint


def test_a_cancel_in_the_last_minute_of_the_walltime_is_one(terminal, run):
    """The script took its TERM for the limit, and the run was told to have timed out for ever."""
    store.note(run, "cancel requested", 1)
    run.job_exit(1).write_text('{"exit_code": 143}')
    assert going_on.advance_from_job(run, 1, "at-limit").decision == Stop("it was cancelled")
    assert store.current(run).state is RunState.CANCELLED
    assert len(terminal.submitted()) == 1


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("Access/permission denied", RunState.FAILED),
        ("Socket timed out on send/recv operation", RunState.CANCELLED),
    ],
)
def test_a_cancel_that_was_refused_makes_no_later_failure_a_cancellation(terminal, run, words, state):
    over(terminal, 70, "RUNNING")
    terminal.answer("scancel", f"echo 'scancel: error: Kill job error on job id 70: {words}' >&2; exit 1")
    with pytest.raises(SchedulerError, match=words):
        submitting.cancel(run)
    run.job_exit(1).write_text('{"exit_code": 7}')
    terminal.answer("squeue", "true")
    assert submitting.refresh([run], fresh=True)[0].state is state


def test_a_job_that_accounting_alone_calls_running_can_be_cancelled_and_resumed(terminal):
    """Of a runaway job it does so for ever: the run was unknown whatever one did."""
    run = submitted(terminal, more=", accounting: true")
    append(run.launcher_events, RunEvent("submitted", time.time() - 60, 1, {"job_id": "70"}))
    terminal.answer("squeue", "true")
    terminal.answer("sacct", "echo '70|c|RUNNING|0:0'")
    terminal.answer(
        "scancel",
        "echo 'scancel: error: Kill job error on job id 70: Invalid job id specified' >&2; exit 1",
    )
    with pytest.raises(UsageError, match="is unknown; cancel it first"):
        submitting.resume(run)
    submitting.cancel(run)
    assert submitting.refresh([run], fresh=True)[0].state is RunState.CANCELLED
    assert submitting.resume(run) == "71"


def test_a_local_job_whose_host_is_gone_can_be_cancelled_and_resumed(terminal, monkeypatch):
    """A container has another host name each time: its runs were unknown for ever."""
    (run,) = preparing.prepare(terminal.study("local"), terminal.runs)
    store.note(run, "submitted", 1, job_id="10-20@gone", scheduler="local")
    assert going_on.outlook(run, store.current(run)) == GoOn("it is not over")
    with pytest.raises(NoAnswerError, match="job 10-20@gone runs on gone, and this is") as caught:
        submitting.cancel(run)
    assert "if that host is gone, hpcdl resume now goes on" in caught.value.hint
    assert submitting.refresh([run], fresh=True)[0].state is RunState.UNKNOWN
    assert going_on.outlook(run, store.current(run)) == Stop("somebody wanted it to stop")
    monkeypatch.setattr(submitting, "hand_over", lambda _, number: [f"job of attempt {number}"])
    assert submitting.resume(run) == "job of attempt 2"
    assert claims.starts(run) == {1: "nobody"}
