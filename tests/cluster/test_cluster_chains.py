"""Arrays and dependencies through a real Slurm: each run is told apart, and what failed holds back what waits."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path

import pytest

from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics, store
from hpcdl.telemetry import read_exits

pytestmark = pytest.mark.slurm

TINY = Path(__file__).parents[1] / "tiny.yaml"
ENDLESS = ("--set", "training.steps=100000")


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.read_text())
    return path


@pytest.fixture
def submit(hpcdl, spec):
    """Submit the small experiment; returns its run folders. What is still queued at the end is cancelled."""
    folders = []

    def call(*args):
        answer = hpcdl("submit", spec, "--json", *args)
        assert answer.returncode == 0, answer.stderr
        runs = json.loads(answer.stdout)
        new = [RunFolder(Path(run["path"])) for run in (runs if isinstance(runs, list) else [runs])]
        folders.extend(new)
        return new

    yield call
    for folder in folders:
        hpcdl("cancel", folder.path)


def told(hpcdl, folder):
    return json.loads(hpcdl("status", folder.path, "--json").stdout)


def wait_for(hpcdl, folder, *states):
    deadline = time.monotonic() + 90
    while (now := told(hpcdl, folder))["state"] not in states:
        assert time.monotonic() < deadline, f"{folder.path.name} is still {now}"
        time.sleep(0.3)
    return now


def times(folder):
    """When the first step and the last rank of a run ended."""
    return metrics.steps(folder)[0].time, max(record.time for record in read_exits(folder.exits(1)))


@pytest.mark.slow
def test_repetitions_run_one_at_a_time_each_in_its_own_folder(hpcdl, submit):
    folders = submit("--repeat", "3", "--at-once", "1", "--wait")
    assert len(folders) == 3
    shown = [told(hpcdl, folder) for folder in folders]
    assert [(run["state"], run["step"]) for run in shown] == [("completed", 6)] * 3
    array = shown[0]["job_id"].removesuffix("_0")
    assert [run["job_id"] for run in shown] == [f"{array}_{index}" for index in range(3)]
    assert len({metrics.steps(folder)[0].loss for folder in folders}) == 3  # the seeds differ
    for folder in folders:
        assert list(folder.logs(1).glob("job*")) == [folder.job_log(1)]
        assert json.loads(folder.job_exit(1).read_text()) == {"exit_code": 0}
    for before, after in itertools.pairwise(folders):
        assert times(before)[1] < times(after)[0]


@pytest.mark.slow
def test_an_element_that_fails_leaves_the_others_right_and_is_resumed_alone(hpcdl, submit):
    (first,) = submit(*ENDLESS)
    folders = submit("--repeat", "3", "--after", f"{first.path.name}:any")
    assert told(hpcdl, folders[2])["attempts"][0]["wait"] == f"for {first.path.name} to end"
    broken = folders[1].rank_metrics(1)
    broken.mkdir()  # that rank cannot write its metrics
    assert hpcdl("cancel", first.path).returncode == 0
    states = [wait_for(hpcdl, folder, "completed", "failed")["state"] for folder in folders]
    assert states == ["completed", "failed", "completed"]
    assert told(hpcdl, folders[1])["first_failure"]["rank"] == 1
    logged = hpcdl("logs", folders[1].path).stdout
    assert "IsADirectoryError" in logged
    broken.rmdir()
    assert hpcdl("resume", folders[1].path).returncode == 0
    again = wait_for(hpcdl, folders[1], "completed")
    assert re.fullmatch(r"\d+", again["job_id"])
    assert [len(told(hpcdl, folder)["attempts"]) for folder in folders] == [1, 2, 1]


@pytest.mark.slow
def test_an_element_is_cancelled_alone(hpcdl, submit):
    folders = submit("--repeat", "3", *ENDLESS)
    for folder in folders:
        wait_for(hpcdl, folder, "running")
    assert hpcdl("cancel", folders[1].path).returncode == 0
    assert wait_for(hpcdl, folders[1], "cancelled", "failed")["state"] == "cancelled"
    assert [told(hpcdl, folder)["state"] for folder in folders] == ["running", "cancelled", "running"]


@pytest.mark.slow
def test_a_run_starts_when_the_one_it_waits_for_has_completed(hpcdl, submit):
    (first,) = submit("--set", "training.steps=200")
    (second,) = submit("--after", "last")
    assert store.current(second).after == (first.path.name,)
    waiting = hpcdl("status", second.path).stdout
    assert f"waits for {first.path.name} to complete" in waiting
    wait_for(hpcdl, second, "completed")
    assert times(first)[1] < times(second)[0]
    (third,) = submit("--after", f"{first.path.name},{second.path.name}", "--wait")
    assert store.current(third).after == ()
    assert "--dependency" not in third.script.read_text()


def test_a_run_whose_parent_failed_never_runs_and_says_why(hpcdl, submit, spec):
    (first,) = submit(*ENDLESS)
    (second,) = submit("--after", first.path.name)
    assert hpcdl("cancel", first.path).returncode == 0
    end = wait_for(hpcdl, second, "cancelled", "failed", "completed", "lost")
    assert end["state"] == "cancelled"
    assert "DependencyNeverSatisfied" in end["reason"]
    assert f"waited for {first.path.name} to complete" in hpcdl("status", second.path).stdout
    assert metrics.steps(second) == []
    refused = hpcdl("submit", spec, "--after", first.path.name)
    assert refused.returncode == 2
    assert f"--after {first.path.name}:ok: it is already over, and cancelled" in refused.stderr
