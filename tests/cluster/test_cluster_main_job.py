"""The main job through a real Slurm: the same commands, and every answer true to what happened."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest
from processes import running

from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics
from hpcdl.telemetry import read_exits

pytestmark = pytest.mark.slurm

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
FEW = ("--set", "training.steps=8", "--set", "checkpoint.every=4")
ENDLESS = ("--set", "training.steps=100000", "--set", "checkpoint.every=0")


@pytest.fixture
def submit(hpcdl):
    """Submit the quickstart example; returns its run folder. What is still queued at the end is cancelled."""
    folders = []

    def call(*args):
        answer = hpcdl("submit", QUICKSTART, "--json", *args)
        assert answer.returncode == 0, answer.stderr
        folders.append(RunFolder(Path(json.loads(answer.stdout)["path"])))
        return folders[-1]

    yield call
    for folder in folders:
        hpcdl("cancel", folder.path)


def told(hpcdl, folder):
    return json.loads(hpcdl("status", folder.path, "--json").stdout)


def wait_until(condition, what, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.2)


def wait_for_state(hpcdl, folder, *states):
    wait_until(lambda: told(hpcdl, folder)["state"] in states, f"state {' or '.join(states)}")


def losses(folder, rank=0):
    return [record.loss for record in metrics.steps(folder, rank)]


@pytest.mark.slow
def test_the_example_trains_on_whole_nodes_one_process_a_gpu(hpcdl, submit, tmp_path):
    folder = submit("--nodes", "2", "--wait", *FEW)
    status = told(hpcdl, folder)
    assert (status["state"], status["step"]) == ("completed", 8)
    assert status["attempts"][0]["exit_code"] == 0
    assert losses(folder)[-1] < losses(folder)[0]

    (started,) = [line for line in folder.engine_events.read_text().splitlines() if '"started"' in line]
    assert json.loads(started)["detail"] | {"steps": 8} == json.loads(started)["detail"]
    assert json.loads(started)["detail"]["hosts"] == 2
    ranks = range(8)
    assert all(folder.rank_log(1, rank).read_text() for rank in ranks)
    assert all(losses(folder, rank) == losses(folder) for rank in ranks)
    assert [record.exit_code for record in read_exits(folder.exits(1))] == [0] * 8

    script = folder.script.read_text()
    assert "#SBATCH --nodes=2" in script
    assert "#SBATCH --gpus-per-node=4" in script
    assert "--ntasks=8" in script

    assert any(row["state"] == "completed" for row in json.loads(hpcdl("list", "--json").stdout))
    followed = hpcdl("logs", "last", "--follow").stdout
    assert "ranks 0-7 |" in followed
    packed = tmp_path / "run.tar.gz"
    assert hpcdl("collect", "last", "--output", packed).returncode == 0
    with tarfile.open(packed) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"job.sh", "logs/attempt-1/job.log", "metrics/rank-00007.jsonl"} <= names


def test_four_ranks_over_two_nodes_train_the_curve_of_this_machine(hpcdl, submit):
    """The scheduler, the nodes and the rendezvous change nothing in the numbers."""
    spread = submit("--gpus", "4", "--nodes", "2", "--wait", *FEW)
    here = submit("--site", "local", "--wait", *FEW)
    assert losses(spread) == pytest.approx(losses(here), rel=1e-5)
    hosts = Counter(record.host for record in read_exits(spread.exits(1)))
    assert sorted(hosts.values()) == [2, 2]


@pytest.mark.slow
def test_mpi_through_srun_trains_the_same_curve(hpcdl, submit):
    over_mpi = submit("--gpus", "4", "--nodes", "2", "--wait", *FEW, "--set", "communication.transport=mpi")
    over_gloo = submit("--gpus", "4", "--nodes", "2", "--wait", *FEW)
    assert losses(over_mpi) == pytest.approx(losses(over_gloo), rel=1e-5)


@pytest.mark.slow
def test_a_job_that_waits_is_queued_and_can_be_cancelled(hpcdl, submit):
    first = submit("--nodes", "4", *ENDLESS)
    second = submit("--nodes", "4", *ENDLESS)
    wait_for_state(hpcdl, first, "running")
    wait_until(lambda: re.search("Resources|Priority", told(hpcdl, second)["reason"] or ""), "why it waits")
    assert told(hpcdl, second)["state"] == "queued"
    assert hpcdl("cancel", second.path).returncode == 0
    wait_for_state(hpcdl, second, "cancelled")
    wait_until(lambda: losses(first), "the first step")
    assert hpcdl("cancel", first.path).returncode == 0
    wait_for_state(hpcdl, first, "cancelled")
    states = {row["run"]: row["state"] for row in json.loads(hpcdl("list", "--json").stdout)}
    assert set(states.values()) == {"cancelled"}


@pytest.mark.slow
def test_logs_follow_until_the_end_of_the_run(hpcdl, submit):
    folder = submit("--gpus", "4", "--nodes", "2", *FEW)
    result = hpcdl("logs", folder.path, "--rank", "0", "--follow")
    assert result.returncode == 0
    steps = [line for line in result.stdout.splitlines() if " step " in line]
    assert [int(line.split(" step ")[1].split()[0]) for line in steps] == list(range(1, 9))


@pytest.mark.slow
def test_a_rank_that_raises_is_named_with_its_host_and_the_exit_code_is_5(hpcdl, slurm_cluster, tmp_path):
    """Rank 2 cannot write its metrics; srun ends the others and answers 143, which nobody asked for."""
    hpcdl_submit, flags = (
        [sys.executable, "-m", "hpcdl", "submit"],
        ["--gpus", "4", "--nodes", "2", "--follow"],
    )
    runs, pipe = tmp_path / "runs", subprocess.PIPE
    command = [*hpcdl_submit, str(QUICKSTART), *flags, *ENDLESS]
    with running(command, env=hpcdl.environment, stdout=pipe, stderr=pipe) as follower:
        wait_until(lambda: list(runs.glob("*/job.sh")), "the run folder")
        (path,) = (script.parent for script in runs.glob("*/job.sh"))
        folder = RunFolder(path)
        folder.rank_metrics(2).mkdir(parents=True)
        try:
            out, err = follower.communicate(timeout=280)
        finally:
            hpcdl("cancel", folder.path)
    assert follower.returncode == 5, out + err
    assert "rank 2 on" in err
    assert "IsADirectoryError" in err
    first = told(hpcdl, folder)["first_failure"]
    assert (first["rank"], first["exit_code"]) == (2, 1)
    # Two ranks a node: rank 2 is the first of the second node.
    assert first["host"] == max(record.host for record in read_exits(folder.exits(1)))


@pytest.mark.slow
def test_a_rank_killed_from_outside_is_not_called_a_success(hpcdl, submit):
    folder = submit("--gpus", "4", "--nodes", "2", *ENDLESS)
    wait_until(lambda: losses(folder), "the first step")
    pids = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and _is_rank(entry, folder, 3)
    ]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for_state(hpcdl, folder, "failed")
    assert told(hpcdl, folder)["first_failure"]["rank"] == 3


def _is_rank(entry, folder, rank):
    try:
        command = (entry / "cmdline").read_bytes()
        environment = (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return (
        b"hpcdl.engine" in command
        and str(folder.path).encode() in command
        and b"python" in command.split(b"\0")[0]
        and b"SLURM_PROCID=%d" % rank in environment
    )


def test_slurm_refusing_is_quoted_and_exits_4(hpcdl, slurm_cluster, tmp_path):
    """The site file promises a partition that the cluster does not have."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(slurm_cluster.site.read_text().replace("urgent:", "gone:"))
    answer = hpcdl("submit", QUICKSTART, "--site", wrong, "--set", "resources.queue=gone")
    assert answer.returncode == 4
    assert "invalid partition specified: gone" in answer.stderr
    assert json.loads(hpcdl("list", "--json").stdout)[0]["state"] == "refused"


def test_a_walltime_over_the_limit_is_refused_before_slurm_is_asked(hpcdl):
    answer = hpcdl("submit", QUICKSTART, "--set", "resources.walltime=02:00:00")
    assert answer.returncode in (2, 3)
    assert "02:00:00" in answer.stderr


@pytest.mark.slow
def test_a_submission_from_inside_a_job_does_not_inherit_its_shape(hpcdl, submit, monkeypatch):
    """SLURM_NTASKS and its like of an enclosing job would reshape the new one."""
    for name, value in (("SLURM_NTASKS", "1"), ("SLURM_JOB_ID", "999"), ("SBATCH_TIMELIMIT", "1")):
        hpcdl.environment[name] = value
    folder = submit("--gpus", "4", "--nodes", "2", "--wait", *FEW)
    assert told(hpcdl, folder)["state"] == "completed"
