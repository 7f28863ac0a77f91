"""A submission that dies at any moment, on a real Slurm: the truth is told, and one job runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import running

from hpcdl.run_folder import RunFolder
from hpcdl.runs import claims, store

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SPEC = """
name: once
command: {{run: [/bin/sh, -c, {run}]}}
resources: {{gpus: 1, walltime: "00:05:00"}}
"""

# hpcdl that is killed at a moment of its own, before or after one of its functions is called.
KILLED = """
import os, signal, sys
from hpcdl.runs import store
from hpcdl.workflow import claiming
from hpcdl.workflow.jobs import submitting
from hpcdl.__main__ import main
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def dying(kind):
    real = store.note
    def note(folder, said, *rest, **detail):
        real(folder, said, *rest, **detail)
        if said == kind:
            die()
    return note
moment = sys.argv.pop(1)
if moment == "before the claim":
    submitting.take = die
elif moment == "after the claim":
    submitting.hand_over = die
elif moment == "after the intent":
    store.note = dying("submitting")
main()
"""

# hpcdl that waits for no answer longer than 8 s.
HASTY = """
import functools
from hpcdl import shell
from hpcdl.__main__ import main
shell.run = functools.partial(shell.run, timeout_s=8.0)
main()
"""

# What stands before the real sbatch on PATH; a test of a script asks for nothing that is killed.
SBATCH = """#!/bin/bash
real={real}
[ "$1" = --test-only ] && exec "$real" "$@"
{body}
"""
BODIES = {
    "sbatch is killed too": "kill -KILL $PPID",
    "sbatch goes on alone": 'kill -KILL $PPID; "$real" "$@"',
    "after sbatch, before the note": '"$real" "$@"; kill -KILL $PPID',
}
LATE = "sbatch comes late"
WAITING = '(until [ -e ../../go ]; do sleep 0.2; done; "$real" "$@") >/dev/null 2>&1 </dev/null &'
CAME_IN = ("sbatch goes on alone", "after sbatch, before the note")


class Place:
    """Where runs are submitted from, with a sbatch of one's own."""

    def __init__(self, folder: Path, call) -> None:
        self.folder, self.call = folder, call
        self.ran = folder / "ran"
        self.ran.touch()
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.spec("sleep 300")

    def spec(self, then: str) -> None:
        """What a run does after it has noted its job."""
        line = json.dumps(f'echo "$SLURM_JOB_ID" >>{self.ran}; {then}')
        (self.folder / "once.yaml").write_text(SPEC.format(run=line))

    def sbatch(self, body: str) -> None:
        program = self.bin / "sbatch"
        program.write_text(SBATCH.format(real=shutil.which("sbatch"), body=body))
        program.chmod(0o755)

    @property
    def environment(self):
        return self.call.environment | {"PATH": f"{self.bin}:{os.environ['PATH']}"}

    def killed(self, moment: str, *args: str) -> RunFolder:
        """Submit, and be killed at that moment; returns what is left."""
        bodies = BODIES | {LATE: f"kill -KILL $PPID; {WAITING}"}
        self.sbatch(bodies.get(moment, 'exec "$real" "$@"'))
        command = [sys.executable, "-c", KILLED, moment, "submit", str(self.folder / "once.yaml"), *args]
        ended = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        (self.bin / "sbatch").unlink()
        return RunFolder(min((self.folder / "runs").glob("once-*")))

    def told(self, folder: RunFolder):
        answer = self.call("status", folder.path, "--json")
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    def jobs(self) -> list[str]:
        """The names of the jobs of these runs that are not over."""
        runs = {path.name.removesuffix("-0") for path in (self.folder / "runs").glob("once-*")}
        listed = subprocess.run(
            ["squeue", "--noheader", "--states=PD,R", "--Format=Name:100"], capture_output=True, text=True,
            env=self.environment, check=True,
        )  # fmt: skip
        names = [line.strip() for line in listed.stdout.splitlines()]
        return [name for name in names if any(name.startswith(run) for run in runs)]


@pytest.fixture
def place(hpcdl, tmp_path):
    place = Place(tmp_path, hpcdl)
    yield place
    for name in set(place.jobs()):
        subprocess.run(["scancel", "--name", name], env=hpcdl.environment, check=False)


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("moment", ["before the claim", "after the claim", "after the intent", *BODIES])
def test_whenever_submit_is_killed_status_is_true_and_resume_leads_to_one_job(place, moment):
    folder = place.killed(moment)
    if moment in CAME_IN:
        until(place.jobs)
    first = place.told(folder)
    resumed = place.call("resume", folder.path)
    if moment in CAME_IN:
        assert first["state"] in ("queued", "running")
        assert first["job_id"]
        assert (resumed.returncode, "cancel it first" in resumed.stderr) == (2, True), resumed.stderr
    else:
        assert (first["state"], first["job_id"]) == ("prepared", None)
        assert moment == "before the claim" or "its submission was broken off" in first["reason"]
        assert resumed.returncode == 0, resumed.stderr
    assert len(place.jobs()) == 1
    until(place.ran.read_text)
    now = place.told(folder)
    assert now["state"] == "running"
    assert place.ran.read_text().split() == [now["job_id"]]


@pytest.mark.parametrize("moment", CAME_IN)
def test_the_elements_of_an_array_are_recognised(place, moment):
    folder = place.killed(moment, "--repeat", "3")
    until(place.jobs)
    array, _, _ = place.told(folder)["job_id"].partition("_")
    told = [place.told(folder.element(index)) for index in range(3)]
    assert [each["job_id"] for each in told] == [f"{array}_{index}" for index in range(3)]
    assert {each["state"] for each in told} <= {"queued", "running"}
    assert "cancel it first" in place.call("resume", folder.element(1).path).stderr
    assert place.call("cancel", folder.element(1).path).returncode == 0
    until(lambda: place.told(folder.element(1))["state"] == "cancelled")
    assert place.told(folder.element(2))["state"] in ("queued", "running")


@pytest.fixture
def failed(place) -> RunFolder:
    """A run whose first attempt has failed; another would go on for long."""
    place.spec(f"[ -e {place.folder}/again ] || {{ touch {place.folder}/again; exit 7; }}; sleep 300")
    assert place.call("submit", place.folder / "once.yaml", "--wait").returncode == 5
    return RunFolder(min((place.folder / "runs").glob("once-*")))


def at_once(place, folder, *verbs):
    """The exit codes of several commands about a run that are given at the same moment."""
    commands = [[sys.executable, "-m", "hpcdl", verb, str(folder.path)] for verb in verbs]
    with ExitStack() as stack:
        all_of_them = [stack.enter_context(running(each, env=place.environment)) for each in commands]
        return [each.wait(250) for each in all_of_them]


def test_of_eight_that_resume_at_once_one_submits_a_job(place, failed):
    assert sorted(at_once(place, failed, *["resume"] * 8)) == [0] + [2] * 7
    assert list(claims.claims(failed)) == [1, 2]
    assert place.jobs() == [f"{failed.path.name}.2"]


def test_cancelling_and_resuming_at_once_leave_at_most_one_job(place, failed):
    """Of what is cancelled another attempt may be submitted at once: one after the other, never two."""
    assert set(at_once(place, failed, "resume", "cancel", "resume", "cancel")) <= {0, 2}
    submitted = [told.attempt for told in store.events(failed) if told.kind == "submitted"]
    assert submitted == [1, 2, 3][: len(submitted)]
    assert len(submitted) > 1
    assert len(place.jobs()) <= 1


def test_an_answer_that_is_lost_is_found_by_status(place):
    """slurmctld takes the job, and sbatch hangs: the time-out says so, and the job is there."""
    place.sbatch('"$real" "$@" >&2; exec sleep 300')
    command = [
        sys.executable,
        "-c",
        HASTY,
        "submit",
        str(place.folder / "once.yaml"),
    ]
    ended = subprocess.run(
        command, env=place.environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 4
    assert "gave no answer within 8 s" in ended.stderr
    assert "looks for it" in ended.stderr
    (path,) = (place.folder / "runs").glob("once-*")
    assert place.told(RunFolder(path))["state"] in ("queued", "running")
    assert len(place.jobs()) == 1


def test_a_job_that_comes_in_after_its_attempt_was_given_up_runs_nothing(place):
    """sbatch hangs while its parent is killed, and reaches slurmctld when another attempt runs already."""
    folder = place.killed(LATE)
    resumed = place.call("resume", folder.path)
    assert resumed.returncode == 0, resumed.stderr
    until(place.ran.read_text)
    (place.folder / "go").touch()
    job_id = place.told(folder)["job_id"]
    log = folder.job_log(2)  # what is submitted by now is the script of the newest attempt
    until(lambda: f"attempt 2 is run by job {job_id}, so job" in log.read_text())
    now = place.told(folder)
    assert (now["state"], [each["state"] for each in now["attempts"]]) == ("running", ["prepared", "running"])
    assert place.ran.read_text().split() == [job_id]
    until(lambda: place.jobs() == [f"{folder.path.name}.2"])


def test_a_run_whose_folder_was_moved_while_it_waited_says_so_and_is_resumed(place):
    place.sbatch('[ -e go ] || set -- --hold "$@"; exec "$real" "$@"')
    command = [sys.executable, "-m", "hpcdl", "submit", str(place.folder / "once.yaml"), "--json"]
    said = subprocess.run(command, env=place.environment, capture_output=True, text=True, check=True).stdout
    before, job_id = RunFolder(Path(json.loads(said)["path"])), json.loads(said)["job_id"]
    after = RunFolder(place.folder / "elsewhere" / "renamed")
    after.path.parent.mkdir()
    shutil.move(before.path, after.path)
    assert place.told(after)["state"] == "queued"
    subprocess.run(["scontrol", "release", job_id], env=place.environment, check=True)
    until(lambda: place.told(after)["state"] == "failed")
    now = place.told(after)
    assert f"its folder was moved after it was submitted, from {before.path}" in now["reason"]
    assert not before.path.exists()
    assert "has no logs (failed)" in place.call("logs", after.path).stderr
    resumed = place.call("resume", after.path)
    assert resumed.returncode == 0, resumed.stderr
    until(place.ran.read_text)
    assert place.told(after)["state"] == "running"
    assert place.call("cancel", after.path).returncode == 0
    until(lambda: place.told(after)["state"] == "cancelled")
