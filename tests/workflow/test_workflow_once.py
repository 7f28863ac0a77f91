"""Whatever breaks a submission off and however many try at once: one job, and the truth about it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from hpcdl import shell
from hpcdl.errors import ClaimedError, NoAnswerError, SchedulerError, UsageError
from hpcdl.run_folder import NOBODY
from hpcdl.runs import claims, store
from hpcdl.runs.claimant import this_process
from hpcdl.runs.record import SUBMISSION_GRACE_S, RunState
from hpcdl.workflow import claiming
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.states import following, recognising
from hpcdl.workflow.states.asking import Outside
from hpcdl.workflow.studies import preparing
from hpcdl.workflow.studies.repeating import Queueing

RESUME = """
import sys
from pathlib import Path
from hpcdl.errors import HpcdlError
from hpcdl.run_folder import NOBODY, RunFolder
from hpcdl.workflow.jobs import submitting
sys.stdin.readline()
try:
    print("job", submitting.{verb}({folder}))
except HpcdlError as error:
    print("no:", error.message)
"""
FOLDER = "RunFolder(Path(sys.argv[1]))"


def patient(now: float | None = None) -> Outside:
    """The world on a clock that nobody waits for."""
    return Outside(now=lambda: now or time.time(), sleep=lambda _: None)


@pytest.fixture
def slurm(terminal):
    """A stand-in that lists the jobs that it took, with the name that stands in the script.

    Asked about a job it tells of three elements too, of which it may be the array.
    """
    names = "$(sed -n 's/^#SBATCH --job-name=//p' job.sh)"
    taken = terminal.folder / "taken"
    number = f'$((70 + $(wc -l <"{taken}")))'
    take = f'id={number}; echo "$id {names}" >>"{taken}"; echo "$id"'
    taken.touch()
    terminal.answer("sbatch", f'[ "$1" = --test-only ] || {{ {take}; }}')
    terminal.answer(
        "squeue",
        f"""
for argument; do case $argument in
  --name=*) sed -n "s/ ${{argument#--name=}}\\$//p" "{taken}" ;;
  --jobs=*) for id in $(sed -E 's/\\b[0-9]+\\b/& &_0 &_1 &_2/g; y/,/ /' <<<"${{argument#--jobs=}}"); do
    [ -e "{terminal.folder}/over" ] || echo "$id|RUNNING|0|None"; done ;;
esac; done""",
    )
    terminal.taken = lambda: [line.split() for line in taken.read_text().splitlines()]
    terminal.take = take
    return terminal


@pytest.fixture
def run(slurm):
    (folder,) = preparing.prepare(slurm.study(), slurm.runs)
    return folder


def over(folder, attempt=1, code=7):
    """What a script leaves that has failed."""
    folder.exits(attempt).mkdir(parents=True, exist_ok=True)
    folder.job_exit(attempt).write_text(f'{{"exit_code": {code}}}')


def gone(folder, attempt=1, host=None):
    """The claim of a process that is no more."""
    who = replace(this_process(), started=1, host=host or socket.gethostname())
    assert claims.claim(folder, attempt, who.mark)


def at_once(folder, count, verb="resume", what=FOLDER):
    """What so many processes say that do the same with a run at the same moment."""
    code = RESUME.format(verb=verb, folder=what)
    all_of_them = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]  # fmt: skip
    time.sleep(0.5)  # not needed for the test to hold: so that they are all at the line
    for each in all_of_them:
        each.stdin.write("\n")
        each.stdin.flush()
    return [each.communicate(timeout=120)[0].strip() for each in all_of_them]


# --- at once


def test_of_eight_that_resume_a_run_at_once_one_submits_it(slurm, run):
    submitting.submit([run])
    (slurm.folder / "over").touch()
    over(run)
    said = at_once(run, 8)
    assert slurm.taken() == [["70", run.path.name], ["71", f"{run.path.name}.2"]]
    assert said.count("job 71") == 1
    others = [words for words in said if words != "job 71"]
    assert all(words.startswith("no: ") for words in others)
    assert set(claims.claims(run)) == {1, 2}


def test_of_eight_that_submit_a_prepared_run_at_once_one_does(slurm, run):
    said = at_once(run, 8, "submit", f"[{FOLDER}]")
    assert len(slurm.taken()) == 1
    assert said.count("job ['70']") == 1
    assert sum("has been claimed by process" in words for words in said) == 7


def test_who_loses_is_told_who_has_it_since_when_and_what_to_do(run):
    claims.claim(run, 1, this_process().mark)
    with pytest.raises(
        UsageError, match=r"attempt 1 has been claimed by process \d+ on \S+, \d+ s ago"
    ) as caught:
        submitting.submit([run])
    assert f"hpcdl status {run.path.name}" in caught.value.hint


def test_a_submission_that_goes_on_is_neither_resumed_nor_cancelled(slurm, run):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        stat = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()
        claims.claim(run, 1, replace(this_process(), process=other.pid, started=int(stat[19])).mark)
        (told,) = following.refresh([run])
        assert told.state is RunState.PREPARED
        assert told.reason.startswith(f"being submitted by process {other.pid} on ")
        with pytest.raises(UsageError, match=f"attempt 1 is being submitted by process {other.pid} on "):
            submitting.resume(run)
        with pytest.raises(UsageError, match="nothing to cancel: being submitted by process"):
            submitting.cancel(run)
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert submitting.resume(run) == "70"
    assert store.current(run).number == 2


def test_who_submitted_it_since_one_looked_is_not_taken_for_dead(slurm, run):
    """Its process had ended meanwhile, all done: the attempt was given up, and another was submitted."""
    gone(run)
    seen = store.current(run)
    store.note(run, "submitted", 1, job_id="70", place=str(run.path))
    with pytest.raises(ClaimedError, match="attempt 1 is being submitted by process"):
        claiming.next_attempt(run, seen)
    assert claims.starts(run) == {}


# --- broken off


def test_a_run_that_nobody_has_submitted_is_submitted_by_resume(slurm, run):
    assert following.refresh([run])[0].state is RunState.PREPARED
    assert submitting.resume(run) == "70"
    assert slurm.taken() == [["70", run.path.name]]


def test_a_claim_without_an_intent_is_left_behind(slurm, run):
    gone(run)
    (told,) = following.refresh([run])
    assert (told.state, told.reason) == (RunState.PREPARED, recognising.NOT_ASKED)
    assert submitting.resume(run) == "70"
    assert slurm.taken() == [["70", f"{run.path.name}.2"]]
    assert claims.starts(run) == {1: NOBODY}


def test_a_lost_answer_is_found_by_the_name_of_the_job(slurm, run, monkeypatch):
    slurm.answer("sbatch", f'[ "$1" = --test-only ] || {{ {slurm.take} >/dev/null; sleep 30; }}')
    monkeypatch.setattr(shell, "run", partial(shell.run, timeout_s=3.0))
    with pytest.raises(NoAnswerError):
        submitting.submit([run])
    (told,) = following.refresh([run])
    assert (told.job_id, told.state) == ("70", RunState.RUNNING)
    assert [event.detail["recognised"] for event in store.events(run) if event.kind == "submitted"] == [True]
    with pytest.raises(UsageError, match="is running; cancel it first"):
        submitting.resume(run)
    assert len(slurm.taken()) == 1


def test_what_the_scheduler_does_not_know_is_said_and_then_submitted_anew(slurm, run, monkeypatch):
    gone(run)
    store.note(run, "submitting", 1, job_name=run.path.name)
    (told,) = following.refresh([run])
    assert (told.state, told.reason) == (RunState.PREPARED, recognising.NOT_KNOWN_YET)
    (told,) = following.refresh([run], patient(time.time() + SUBMISSION_GRACE_S + 1))
    assert (told.state, told.reason) == (RunState.PREPARED, recognising.NOT_KNOWN)
    monkeypatch.setattr(recognising, "SUBMISSION_GRACE_S", 0.0)
    assert submitting.resume(run) == "70"
    assert slurm.taken() == [["70", f"{run.path.name}.2"]]


def test_a_job_that_is_not_visible_at_once_is_waited_for(slurm, run):
    gone(run)
    store.note(run, "submitting", 1, job_name=run.path.name)

    def wait(seconds):
        assert seconds == SUBMISSION_GRACE_S
        (slurm.folder / "taken").write_text(f"70 {run.path.name}\n")

    (told,) = following.refresh([run], Outside(sleep=wait), fresh=True)
    assert (told.job_id, told.state) == ("70", RunState.RUNNING)


def test_a_job_that_is_noted_while_it_is_looked_for_is_known(slurm, run):
    """Who looked called its submission broken off, and submitted the run again."""
    gone(run)
    store.note(run, "submitting", 1, job_name=run.path.name)
    outside = Outside(sleep=lambda _: store.note(run, "submitted", 1, job_id="71", scheduler="slurm"))
    site = following.site_of(run)
    assert recognising.recognised(run, store.current(run), site, outside, fresh=True).job_id == "71"


def test_nothing_is_submitted_while_the_scheduler_cannot_say_whether_it_has_the_run(slurm, run):
    gone(run)
    store.note(run, "submitting", 1, job_name=run.path.name)
    slurm.answer("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SchedulerError, match="Slurm does not answer") as caught:
        submitting.resume(run)
    assert caught.value.exit_code == 4
    assert "nothing was changed" in caught.value.hint
    assert slurm.taken() == []
    assert store.current(run).number == 1


def test_a_scheduler_that_was_asked_once_is_not_asked_again_by_who_only_looks(slurm, run):
    gone(run)
    store.note(run, "submitting", 1, job_name=run.path.name)
    later = patient(time.time() + 60)
    following.refresh([run], later)
    slurm.answer("squeue", "exit 1")
    assert following.refresh([run], later)[0].reason == recognising.NOT_KNOWN
    with pytest.raises(SchedulerError):
        following.refresh([run], later, fresh=True)


def test_a_claim_of_another_host_counts_until_it_is_old(slurm, run):
    gone(run, host="login9")
    with pytest.raises(UsageError, match=r"is being submitted by process \d+ on login9"):
        submitting.resume(run)
    stat = run.claim(1).lstat()
    past = stat.st_mtime - claiming.CLAIM_EXPIRES_S - 1
    os.utime(run.claim(1), (past, past), follow_symlinks=False)
    assert submitting.resume(run) == "70"


def test_who_was_taken_for_dead_submits_nothing_when_it_goes_on(slurm, run):
    claiming.take(run, 1)
    claims.give_up(run, 1)
    with pytest.raises(UsageError, match="attempt 1 was given up, as its submission took so long"):
        submitting.hand_over([run], 1)
    assert slurm.taken() == []


def test_who_was_taken_for_dead_while_the_scheduler_took_its_job_withdraws_it(slurm, run):
    link = f"mkdir -p starts; ln -s {NOBODY} starts/attempt-1"
    slurm.answer("sbatch", f'[ "$1" = --test-only ] || {{ {link}; {slurm.take}; }}')
    slurm.answer("scancel", f'echo "$*" >"{slurm.folder}/cancelled"')
    with pytest.raises(UsageError, match="attempt 1 was given up"):
        submitting.submit([run])
    assert (slurm.folder / "cancelled").read_text() == "70\n"


def test_a_job_that_has_started_is_known_by_its_link_though_the_scheduler_forgot_it(slurm, run):
    gone(run)
    store.note(run, "submitting", 1, job_name=run.path.name)
    run.start(1).parent.mkdir()
    run.start(1).symlink_to("70")
    (slurm.folder / "over").touch()
    over(run)
    (told,) = following.refresh([run])
    assert (told.job_id, told.state, told.exit_code) == ("70", RunState.FAILED, 7)
    assert submitting.resume(run) == "70"  # the first that this stand-in takes
    assert store.current(run).number == 2


def test_the_job_of_a_site_with_a_cluster_is_known_with_it(slurm, tmp_path):
    machine = tmp_path / "machine.yaml"
    machine.write_text("extends: generic-slurm\nname: machine\nscheduler: {cluster: escher}\n")
    (folder,) = preparing.prepare(slurm.study(str(machine)), slurm.runs)
    gone(folder)
    folder.start(1).parent.mkdir()
    folder.start(1).symlink_to("70")
    slurm.answer("squeue", f'echo "$*" >"{slurm.folder}/asked"; echo "70;escher|RUNNING|0|None"')
    (told,) = following.refresh([folder])
    assert (told.job_id, told.state) == ("70;escher", RunState.RUNNING)
    assert "--clusters=escher" in (slurm.folder / "asked").read_text()


@pytest.mark.parametrize("end", ["echo '== welcome, your job was accepted =='", "kill -9 $$"])
def test_a_job_that_was_taken_without_its_id_is_found_by_its_name(slurm, run, end):
    """A wrapper around sbatch that prints a banner only: the run was called refused, and resume made a second job."""
    slurm.answer("sbatch", f'[ "$1" = --test-only ] || {{ {slurm.take} >/dev/null; {end}; }}')
    with pytest.raises(NoAnswerError) as caught:
        submitting.submit([run])
    assert f"hpcdl status {run.path.name} looks for it" in caught.value.hint
    with pytest.raises(UsageError, match="is running; cancel it first"):
        submitting.resume(run)
    assert len(slurm.taken()) == 1


def test_a_job_that_comes_in_although_it_seemed_refused_does_not_run_beside_the_next(slurm, run):
    slurm.answer("sbatch", f'[ "$1" = --test-only ] || {{ {slurm.take} >/dev/null; echo odd >&2; exit 1; }}')
    with pytest.raises(SchedulerError, match="Slurm refused the job: odd"):
        submitting.submit([run])
    slurm.answer("sbatch", f'[ "$1" = --test-only ] || {{ {slurm.take}; }}')
    assert submitting.resume(run) == "71"
    assert claims.starts(run) == {1: NOBODY}


def test_a_job_that_seemed_refused_and_has_just_started_is_left_alone(run):
    gone(run)
    store.note(run, "refused", 1, reason="odd")
    before = store.current(run)
    run.start(1).parent.mkdir()
    run.start(1).symlink_to("70")
    with pytest.raises(UsageError, match="has just started"):
        claiming.next_attempt(run, before)
    assert set(claims.claims(run)) == {1}


@pytest.mark.parametrize("state", [RunState.LOST, RunState.CANCELLED])
def test_a_job_that_others_do_not_see_in_the_queue_does_not_run_beside_the_next(run, state):
    """PrivateData of Slurm, query_other_jobs of PBS: it is lost to whoever resumes somebody else's run."""
    gone(run)
    store.note(run, "submitted", 1, job_id="70")
    store.note(run, "observed", 1, state=state.value)
    assert claiming.next_attempt(run, store.current(run)) == 2
    assert claims.starts(run) == {1: NOBODY}


def test_a_lost_run_that_had_started_goes_on(run):
    gone(run)
    store.note(run, "submitted", 1, job_id="70")
    run.start(1).parent.mkdir()
    run.start(1).symlink_to("70")
    assert claiming.next_attempt(run, replace(store.current(run), state=RunState.LOST)) == 2
    assert claims.starts(run) == {1: "70"}


def test_a_run_folder_in_which_no_start_can_be_withheld_is_said_to_be_unwritable(run):
    gone(run)
    run.start(1).parent.write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        claiming.next_attempt(run, store.current(run))


def test_elements_of_an_array_are_recognised_each_by_its_index(slurm, monkeypatch):
    folders = preparing.prepare(slurm.study(), slurm.runs, Queueing(repeat=3))
    slurm.answer("sbatch", f'[ "$1" = --test-only ] || {{ {slurm.take} >/dev/null; sleep 30; }}')
    monkeypatch.setattr(shell, "run", partial(shell.run, timeout_s=3.0))
    with pytest.raises(NoAnswerError):
        submitting.submit(folders)
    told = following.refresh(folders)
    assert [attempt.job_id for attempt in told] == ["70_0", "70_1", "70_2"]
    assert {attempt.state for attempt in told} == {RunState.RUNNING}
    assert len(slurm.taken()) == 1


def test_a_run_that_makes_no_answer_on_this_machine_is_known_by_its_start(terminal):
    (folder,) = preparing.prepare(terminal.study("local", "training.steps=1"), terminal.runs)
    gone(folder)
    store.note(folder, "submitting", 1, job_name=folder.path.name)
    assert following.refresh([folder])[0].reason == recognising.NOT_KNOWN_YET
    folder.start(1).parent.mkdir()
    folder.start(1).symlink_to(f"1-1@{socket.gethostname()}")
    over(folder)
    assert following.refresh([folder])[0].state is RunState.FAILED


def test_a_script_that_was_started_by_hand_ends_as_its_record_says(slurm, run):
    """No scheduler knows the process; asked about it, one would refuse the question about every other run."""
    slurm.answer("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    slurm.answer("srun", "exit 3")
    slurm.answer("squeue", "exit 1")
    with pytest.raises(SchedulerError):
        submitting.submit([run])
    assert subprocess.run(["bash", str(run.script)], check=False, timeout=60).returncode == 3
    assert claims.starts(run)[1].startswith("process ")
    begun = store.current(run)
    assert (begun.state, begun.job_id, begun.by_start) == (RunState.RUNNING, None, False)
    assert begun.reason.startswith("its script was started by hand: process ")
    assert following.last_known(run).state is RunState.FAILED
    (seen,) = following.refresh([run])
    assert (seen.state, seen.exit_code) == (RunState.FAILED, 3)
    assert store.current(run).state is RunState.FAILED
    assert [each.state for each in following.attempts_of(run)] == [RunState.FAILED]
