"""Looking at the runs of somebody else, in a folder where one may only read."""

import json
import os
import time

import powerless
import pytest
from runs.written import lived, prepared, trained
from workflow.crowd import Slurm, runs

from hpcdl.runs import claims, store
from hpcdl.telemetry import RunEvent, append
from hpcdl.workflow.states import following


@pytest.fixture
def ended(tmp_path):
    """A run whose job has ended with 0, as nobody has seen yet."""
    run = prepared(tmp_path)
    lived(run, 1, 0, 0, "running")
    trained(run, [5.0, 4.0])
    run.job_exit(1).write_text('{"exit_code": 0}\n')
    yield run
    _writable(tmp_path)


def _writable(folder):
    for place, _, _ in os.walk(folder):
        os.chmod(place, 0o755)  # noqa: PTH101


def test_whoever_may_only_read_is_told_how_a_run_ended(ended, tmp_path):
    """One run that ended unseen made list fail for everybody who could not write its events."""
    powerless.read_only(ended.path.parent)
    listed = powerless.hpcdl("list", "--json", "--runs", ended.path.parent)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [row["state"] for row in json.loads(listed.stdout)] == ["completed"]
    page = tmp_path / "page.html"
    for verb in (("status",), ("watch", "--once"), ("report", "--output", page)):
        shown = powerless.hpcdl(*verb, ended.path)
        assert (shown.returncode, shown.stderr) == (0, ""), verb
        assert "completed" in (shown.stdout if verb[0] != "report" else page.read_text()), verb
    assert not store.current(ended).state.over


def test_whoever_may_only_read_is_told_of_another_life_of_a_job(ended):
    """Neither the life before it nor its own beginning is noted, and its links say as much."""
    for path, target in ((ended.start(1), "71"), (ended.claim(2), "requeued 71"), (ended.start(2), "71")):
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)
    powerless.read_only(ended.path.parent)
    shown = powerless.hpcdl("status", ended.path, "--json")
    assert (shown.returncode, shown.stderr) == (0, "")
    attempts = json.loads(shown.stdout)["attempts"]
    assert [(each["number"], each["job_id"]) for each in attempts] == [(1, "71"), (2, "71")]
    assert attempts[0]["state"] == "requeued"


def test_whoever_may_only_read_follows_a_run_to_its_end(ended):
    """The end of somebody else's run that failed was an error: its events could not be written."""
    ended.job_exit(1).write_text('{"exit_code": 1}\n')
    powerless.read_only(ended.path.parent)
    followed = powerless.hpcdl("logs", "--follow", ended.path)
    assert (followed.returncode, followed.stderr) == (0, "")


def test_whoever_may_only_read_cannot_submit(ended):
    ended.job_exit(1).write_text('{"exit_code": 1}\n')
    powerless.read_only(ended.path.parent)
    refused = powerless.hpcdl("resume", ended.path)
    assert refused.returncode == 2
    assert "Permission denied" in refused.stderr
    assert len(store.history(ended)) == 1


@pytest.mark.parametrize(("knows", "state"), [(False, "prepared"), (True, "running")])
def test_whoever_may_only_read_is_told_of_a_submission_that_was_broken_off(
    tmp_path, monkeypatch, knows, state
):
    """One such run made list and status fail for everybody who could not note what the scheduler said of it."""
    slurm = Slurm(tmp_path)
    monkeypatch.setenv("PATH", f"{slurm.bin}:{os.environ['PATH']}")
    (run,) = runs(tmp_path, 1)
    assert claims.claim(run, 2, f"process 4194304-1@{os.uname().nodename} 00000000")
    long_ago = time.time() - 3600
    append(run.launcher_events, RunEvent("submitting", long_ago, 2, {"job_name": f"{run.path.name}.2"}))
    if knows:
        run.start(2).parent.mkdir()
        run.start(2).symlink_to("2")
        slurm.say("2", "RUNNING")
    powerless.read_only(run.path.parent)
    listed = powerless.hpcdl("list", "--json", "--runs", run.path.parent)
    shown = powerless.hpcdl("status", run.path, "--json")
    _writable(tmp_path)
    assert [(each.returncode, each.stderr) for each in (listed, shown)] == [(0, "")] * 2
    assert [row["state"] for row in json.loads(listed.stdout)] == [state]
    assert json.loads(shown.stdout)["state"] == state


def test_whoever_may_only_read_asks_the_scheduler_alone(tmp_path, monkeypatch):
    """The desk of those who may write is there, and nothing can be put on it."""
    slurm = Slurm(tmp_path)
    monkeypatch.setenv("PATH", f"{slurm.bin}:{os.environ['PATH']}")
    (run,) = runs(tmp_path, 1)
    slurm.say("1", "RUNNING")
    following.refresh([run])
    slurm.say("1", "COMPLETED")
    run.job_exit(1).write_text('{"exit_code": 0}\n')
    powerless.read_only(run.path.parent)
    shown = powerless.hpcdl("status", run.path, "--json")
    _writable(tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert json.loads(shown.stdout)["state"] == "completed"
