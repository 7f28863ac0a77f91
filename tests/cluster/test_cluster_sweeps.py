"""A sweep through a real Slurm: arrays whose elements find their points, failures, and only those again."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics, store
from hpcdl.telemetry import read_exits

pytestmark = pytest.mark.slurm

TINY = Path(__file__).parents[1] / "tiny.yaml"


@pytest.fixture
def sweep(tmp_path):
    """Write the small experiment with a sweep."""
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)

    def write(what, base=None):
        path = tmp_path / "tiny.yaml"
        path.write_text(f"{base or TINY.read_text()}\nsweep: {what}\n")
        return path

    return write


def told(hpcdl, *arguments):
    answer = hpcdl(*arguments)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def wait_until_over(hpcdl, group):
    deadline = time.monotonic() + 180
    while True:
        points = told(hpcdl, "status", group, "--json")["points"]
        if not {point["state"] for point in points} & {"queued", "running", "prepared"}:
            return points
        assert time.monotonic() < deadline, points
        time.sleep(0.5)


@pytest.mark.slow
def test_points_that_failed_and_no_others_are_submitted_again_as_an_array(hpcdl, sweep):
    path = sweep(
        "{grid: {training.optimizer.lr: [1.0e-3, 1.0e-2, 1.0e-1], training.seed: [3, 4]}, at_once: 2}"
    )
    # Nothing runs before the faults are in place: the array waits for another job.
    first = told(hpcdl, "submit", path, "--set", "sweep=null", "--set", "training.steps=100000", "--json")
    runs = told(hpcdl, "submit", path, "--after", f"{first['run']}:any", "--json")
    group, folders = runs[0]["group"], [RunFolder(Path(run["path"])) for run in runs]
    assert len({run["job_id"].partition("_")[0] for run in runs}) == 1
    broken = [folders[1], folders[4]]
    for folder in broken:
        folder.rank_metrics(1).mkdir(parents=True)  # that rank cannot write its metrics
    assert hpcdl("cancel", first["run"]).returncode == 0
    points = wait_until_over(hpcdl, group)
    states = ["completed", "failed", "completed", "completed", "failed", "completed"]
    assert [point["state"] for point in points] == states
    for run in runs:  # each element trained what its point says
        resolved = store.resolved(RunFolder(Path(run["path"]))).experiment.training
        assert {"training.optimizer.lr": resolved.optimizer.lr, "training.seed": resolved.seed} == run[
            "point"
        ]
    assert most_at_a_time([folder for folder in folders if folder not in broken]) <= 2
    for folder in broken:
        folder.rank_metrics(1).rmdir()
    again = hpcdl("resume", group, "--failed", "--wait")
    assert again.returncode == 0, again.stderr
    assert "2 points as job" in again.stdout
    points = told(hpcdl, "status", group, "--json")["points"]
    assert [point["state"] for point in points] == ["completed"] * 6
    assert [point["attempt"] for point in points] == [1, 2, 1, 1, 2, 1]
    ids = {points[1]["job_id"], points[4]["job_id"]}
    assert {job_id.partition("_")[2] for job_id in ids} == {"0", "1"}
    assert len({job_id.partition("_")[0] for job_id in ids}) == 1
    for folder in broken:
        assert json.loads(folder.job_exit(2).read_text()) == {"exit_code": 0}
        assert folder.job_log(2).is_file()
    results = told(hpcdl, "results", group, "--json")["points"]
    assert sum(point["best"] for point in results) == 1
    assert len({point["first_loss"] for point in results}) == 2  # one a seed
    assert all(point["node_hours"] > 0 for point in results)


def most_at_a_time(folders):
    """How many of the runs were between their first step and their end at the same time."""
    changes = []
    for folder in folders:
        end = max(record.time for record in read_exits(folder.exits(1)))
        changes += [(metrics.steps(folder)[0].time, 1), (end, -1)]
    return most_of(changes)


def most_of(changes):
    """The most that begin (time, 1) before others end (time, -1)."""
    return max(itertools.accumulate(change for _, change in sorted(changes)))


@pytest.mark.slow
def test_a_site_with_a_small_limit_gets_several_arrays_that_hold_back_together(
    hpcdl, sweep, slurm_cluster, tmp_path
):
    site = tmp_path / "limited.yaml"
    site.write_text(slurm_cluster.site.read_text().replace("kind: slurm", "kind: slurm\n  max_array: 2", 1))
    says = "date +at:%s.%N; echo seed $HPCDL_SEED; sleep 1; date +at:%s.%N"
    base = f'command: [bash, -c, "{says}"]\nresources: {{gpus: 1, walltime: "00:05:00"}}\n'
    path = sweep("{grid: {command.seed: [10, 11, 12, 13, 14]}, at_once: 2}", base)
    runs = told(hpcdl, "submit", path, "--site", site, "--wait", "--json")
    assert [run["state"] for run in runs] == ["completed"] * 5
    arrays = [run["job_id"].partition("_")[0] for run in runs]
    assert len(set(arrays)) == 3
    changes = []
    for run, seed in zip(runs, range(10, 15), strict=True):
        lines = RunFolder(Path(run["path"])).rank_log(1, 0).read_text().splitlines()
        assert f"seed {seed}" in lines
        begin, end = (line for line in lines if re.fullmatch(r"at:\d+\.\d+", line))
        changes += [(float(begin[3:]), 1), (float(end[3:]), -1)]
    assert most_of(changes) <= 2


def test_cancelling_a_sweep_ends_all_of_it(hpcdl, sweep):
    path = sweep("{grid: {training.seed: [1, 2, 3], training.steps: [100000, 200000]}}")
    runs = told(hpcdl, "submit", path, "--json")
    done = hpcdl("cancel", runs[0]["group"])
    assert "asked the scheduler to cancel 6 of 6 points" in done.stdout
    assert {point["state"] for point in wait_until_over(hpcdl, runs[0]["group"])} == {"cancelled"}


@pytest.mark.slow
def test_slurm_takes_the_arrays_of_2500_points(hpcdl, sweep, slurm_cluster):
    """``sbatch --test-only`` judges each script before it is submitted; the arrays are held by a job before them."""
    path = sweep(
        "{random: {points: 2500, keys: {command.seed: {integers: [0, 1000000000]}}}}",
        'command: ["true"]\nresources: {gpus: 1, walltime: "00:05:00"}\n',
    )
    first = told(
        hpcdl,
        "submit",
        TINY,
        "--set",
        f"data.path={path.parent}/corpus.txt",
        "--set",
        "training.steps=100000",
        "--json",
    )
    try:
        runs = told(hpcdl, "submit", path, "--after", f"{first['run']}:any", "--json")
        assert len({run["job_id"] for run in runs}) == len(runs) == 2500
        arrays = [run["job_id"].partition("_")[0] for run in runs]
        assert sorted(arrays.count(array) for array in set(arrays)) == [500, 1000, 1000]
        shown = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(set(arrays))}"],
            env=hpcdl.environment, capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        assert sorted(shown) == sorted(run["job_id"] for run in runs)
    finally:
        for row in told(hpcdl, "list", "--json"):
            hpcdl("cancel", row["run"])
