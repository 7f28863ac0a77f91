"""A job that its scheduler runs again is another attempt of the run, and nothing of its former life is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from schedulers.sample import HOSTILE_NAME, interpreter, job, prepared, site

from hpcdl.run_folder import NOBODY, RunFolder
from hpcdl.runs import claims, store
from hpcdl.runs.lives import Life, lives
from hpcdl.runs.record import RunState
from hpcdl.schedulers.base import After, Array, Job, Scheduler
from hpcdl.schedulers.known import SCHEDULERS
from hpcdl.schedulers.script import render

LOCAL = site("local", "fork", scheduler={"gpu_request": "none"}, nodes={"gpu": {"device": {"kind": "cpu"}}})
BODY = 'echo "rank $RANK of attempt $HPCDL_ATTEMPT"; exit "${CODE:-0}"'


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder with a hostile name and a script of attempt 1."""
    folder = prepared(tmp_path / HOSTILE_NAME)
    work = job(folder.path, LOCAL, python=interpreter(tmp_path, BODY))
    folder.script.write_text(render(work))
    return folder


def start(folder: RunFolder, job_id: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a scheduler runs it for this job."""
    environment = {"PATH": os.environ["PATH"], "HPCDL_JOB": job_id} | variables
    return subprocess.run(
        ["bash", str(folder.script)], env=environment, text=True, capture_output=True, check=False, timeout=60
    )


def lines(folder: RunFolder, attempt: int) -> list[str]:
    return sorted(folder.job_log(attempt).read_text().splitlines())


def record(folder: RunFolder, attempt: int) -> dict[str, int]:
    told: dict[str, int] = json.loads(folder.job_exit(attempt).read_text())
    return told


def ranks(attempt: int) -> list[str]:
    return [f"rank {rank} of attempt {attempt}" for rank in range(2)]


def test_a_job_that_is_run_again_is_the_next_attempt_and_keeps_the_former_ones_record(run):
    assert start(run, "7", CODE="3").returncode == 3
    assert start(run, "7").returncode == 0
    assert (record(run, 1), record(run, 2)) == ({"exit_code": 3}, {"exit_code": 0})
    assert lines(run, 1) == [
        "hpcdl: job 7 runs again, as attempt 2, which has a log of its own",
        *ranks(1),
    ]
    assert lines(run, 2) == ranks(2)
    assert run.request(2).read_text() == ""
    assert claims.claims(run) == {2: "requeued 7"}
    assert claims.starts(run) == {1: "7", 2: "7"}


def test_a_link_whose_making_was_asked_for_twice_is_no_second_life(run, tmp_path):
    """Over NFS a request whose answer was lost is sent again, and finds the link that it has made."""
    programs = tmp_path / "programs"
    programs.mkdir()
    once = f'[ -e "{tmp_path}/once" ] || {{ touch "{tmp_path}/once"; exit 1; }}'
    (programs / "ln").write_text(f'#!/bin/bash\n/bin/ln "$@" || exit\n{once}\n')
    (programs / "ln").chmod(0o755)
    assert start(run, "7", PATH=f"{programs}:{os.environ['PATH']}").returncode == 0
    assert lines(run, 1) == ranks(1)
    assert (claims.claims(run), claims.starts(run)) == ({}, {1: "7"})


def test_a_job_may_be_run_again_and_again(run):
    for life in range(1, 5):
        assert start(run, "7", CODE=str(life)).returncode == life
        assert record(run, life) == {"exit_code": life}
    assert lives(claims.claims(run), claims.starts(run)) == {
        2: Life("7", 1, 1),
        3: Life("7", 2, 1),
        4: Life("7", 3, 1),
    }


def test_another_job_finds_the_attempt_taken_and_ends_without_a_trace(run):
    start(run, "7")
    before = {path: path.read_bytes() for path in run.exits(1).iterdir()}
    assert start(run, "8").returncode == 1
    assert "attempt 1 is run by job 7, so job 8 ends here and has run nothing" in run.job_log(1).read_text()
    assert {path: path.read_bytes() for path in run.exits(1).iterdir()} == before
    assert claims.starts(run) == {1: "7"}


def test_a_number_that_a_launcher_claimed_is_passed_over_and_its_job_never_begins(run, tmp_path):
    start(run, "7")
    assert claims.claim(run, 2, "somebody on a login node")
    later = job(run.path, LOCAL, python=interpreter(tmp_path, BODY))
    second = render(Job(later.run, LOCAL, run.path, 2, later.python))
    assert start(run, "7").returncode == 0
    assert lines(run, 3) == ranks(3)
    run.logs(2).mkdir(parents=True)
    run.script.write_text(second)
    assert start(run, "9").returncode == 1
    assert "attempt 2 is run by job 7, so job 9 ends here" in run.job_log(2).read_text()
    assert not run.job_exit(2).exists()
    assert lives(claims.claims(run), claims.starts(run)) == {3: Life("7", 1, 1)}
    assert [(each.number, each.given_up) for each in store.history(run)][1:] == [(2, True), (3, False)]


def test_a_number_that_a_launcher_gave_up_is_passed_over(run):
    start(run, "7")
    assert claims.claim(run, 2, "somebody on a login node")
    assert claims.give_up(run, 2)
    assert start(run, "7").returncode == 0
    assert claims.starts(run) == {1: "7", 2: NOBODY, 3: "7"}
    assert lines(run, 3) == ranks(3)


def test_a_job_that_is_run_again_while_the_run_goes_on_as_another_job_ends(run):
    start(run, "7")
    assert claims.claim(run, 2, "somebody on a login node")
    run.start(2).symlink_to("8")
    assert start(run, "7").returncode == 1
    assert "attempt 2 is run by job 8, so job 7 ends here" in run.job_log(1).read_text()
    assert record(run, 1) == {"exit_code": 0}
    assert not run.job_log(3).exists()


def test_two_that_are_run_again_at_once_never_run_one_attempt(run):
    start(run, "7")
    environment = {"PATH": os.environ["PATH"], "HPCDL_JOB": "7"}
    both = [
        subprocess.Popen(["bash", str(run.script)], env=environment, stderr=subprocess.DEVNULL)
        for _ in range(8)
    ]
    assert [each.wait(60) for each in both] == [0] * 8
    assert sorted(claims.claims(run)) == list(range(2, 10))
    assert [lines(run, attempt) for attempt in range(2, 10)] == [ranks(attempt) for attempt in range(2, 10)]


def test_a_folder_that_takes_no_link_is_told_with_the_systems_words(run, tmp_path):
    (run.path / "starts").write_text("")
    assert start(run, "7").returncode == 1
    assert "starts" in run.job_log(1).read_text()
    assert not run.job_exit(1).exists()
    assert not list(tmp_path.glob("pwned*"))


def test_the_fold_tells_both_lives_of_a_job(run):
    store.note(run, "submitted", 1, job_id="7;cluster")
    start(run, "7", CODE="143")
    start(run, "7")
    former, newest = store.history(run)
    assert (former.state, former.job_id) == (RunState.REQUEUED, "7;cluster")
    assert (newest.number, newest.state, newest.job_id) == (2, RunState.RUNNING, "7;cluster")


OWN = {
    "slurm": ({"SLURM_JOB_ID": "16"}, "16"),
    "pbs": ({"PBS_JOBID": "72.server"}, "72.server"),
    "lsf": ({"LSB_JOBID": "16", "LSB_JOBINDEX": "0"}, "16"),
    "local": ({"HPCDL_JOB": "16-123@host"}, "16-123@host"),
}
OF_ELEMENT = {
    "slurm": ({"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "2"}, "16"),
    "pbs": ({"PBS_JOBID": "72[2].server", "PBS_ARRAY_INDEX": "2"}, "72[].server"),
    "lsf": ({"LSB_JOBID": "16", "LSB_JOBINDEX": "3"}, "16"),
}


def word(text: str, environment: dict[str, str]) -> str:
    """What bash makes of a word."""
    path = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        ["bash", "-uc", f"printf %s {text}"],
        env=path | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("kind", OWN)
def test_a_job_knows_the_id_under_which_it_is_asked_about(kind):
    backend: Scheduler = SCHEDULERS[kind]
    environment, job_id = OWN[kind]
    assert word(backend.OWN_JOB, environment) == job_id
    assert word(backend.OWN_JOB, {}) == ""


@pytest.mark.parametrize("kind", OF_ELEMENT)
def test_an_element_knows_the_id_under_which_it_is_asked_about(kind):
    environment, array = OF_ELEMENT[kind]
    elements = SCHEDULERS[kind].ELEMENTS
    assert elements
    assert word(elements.own_job, environment) == elements.job_id(array, 2)


BY_HAND = {
    "slurm": {"SLURM_JOB_ID": "18", "SLURM_ARRAY_TASK_ID": "2"},
    "pbs": {"PBS_ARRAY_INDEX": "2"},
    "lsf": {"LSB_JOBINDEX": "3"},
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_an_element_that_is_started_by_hand_has_no_id(kind):
    """In one's own allocation, with the index alone, it called itself ``_2``, and no run beside it was listed."""
    elements = SCHEDULERS[kind].ELEMENTS
    assert elements
    assert word(elements.own_job, BY_HAND[kind]) == ""


def test_flux_is_asked_for_the_id_which_it_may_spell_with_its_own_letter(tmp_path):
    (tmp_path / "flux").write_text('#!/bin/sh\n[ "$*" = "getattr jobid" ] && echo ƒ2oPz\n')
    (tmp_path / "flux").chmod(0o755)
    for locale in ("C", "C.UTF-8"):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LC_ALL": locale}
        assert word(SCHEDULERS["flux"].OWN_JOB, environment) == "f2oPz"
    assert word(SCHEDULERS["flux"].OWN_JOB, {}) == ""


@pytest.mark.parametrize(
    ("kind", "launcher"), [("slurm", "srun"), ("pbs", "pbsdsh"), ("pbs", "mpiexec-hydra"), ("lsf", "jsrun")]
)
def test_scripts_of_arrays_and_of_jobs_that_wait_are_sound_bash(tmp_path, kind, launcher):
    machine = site(kind, launcher, scheduler={"place": "scatter"})
    folders = tuple(tmp_path / HOSTILE_NAME / f"r-{index}" for index in range(2))
    work = job(folders[0], machine, python=sys.executable)
    array = Array(folders)
    script = render(
        Job(work.run, machine, work.folder, 1, work.python, after=After("ok", ("1",)), array=array)
    )
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
