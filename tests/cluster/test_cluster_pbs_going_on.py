"""Runs that go on over jobs of a stand-in for PBS, which warns of no limit and runs jobs again under their id."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.pbs import PbsCluster
from cluster.slurm import until
from schedulers.sample import interpreter

from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics

TESTS = Path(__file__).parents[1]
SPEC = """
name: chained
model: {{entry: "slow:program"}}
training: {{global_batch: 8, steps: {steps}, precision: fp32, optimizer: {{lr: 1.0e-2}}}}
parallelism: {{data: 4, microbatch: 2}}
resources: {{gpus: 4, nodes: 2, walltime: "{walltime}"}}
checkpoint: {{every: 1, before_limit_seconds: {lead}}}
environment: {{SLOW_SECONDS: "{seconds}"}}
"""
LONG_S = 800


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PbsCluster]:
    shutil.copy(TESTS / "slow.py", tmp_path)
    with PbsCluster(tmp_path / "pbs", kill_delay_s=30) as running:
        for name, value in running.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HPCDL_SITE", str(running.site))
        monkeypatch.setenv("HPCDL_RUNS", str(tmp_path / "runs"))
        yield running


def site(cluster: PbsCluster, text: str) -> None:
    """Add to the site's file."""
    cluster.site.write_text(f"{cluster.site.read_text()}\n{text}\n")


def hpcdl(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpcdl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)


def submit(tmp_path: Path, *flags: str, **values: object) -> RunFolder:
    spec = tmp_path / "chained.yaml"
    spec.write_text(SPEC.format(**{"steps": 36, "walltime": "00:10:00", "seconds": 0, "lead": 30} | values))
    answer = hpcdl("submit", spec, "--json", *flags)
    assert answer.returncode == 0, answer.stderr
    return RunFolder(Path(json.loads(answer.stdout)["path"]))


def status() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(hpcdl("status", "last", "--json").stdout)
    return told


def states() -> list[str]:
    return [attempt["state"] for attempt in status()["attempts"]]


def test_a_job_that_is_run_again_is_another_attempt_on_every_host(cluster, tmp_path):
    body = 'echo "rank $RANK of attempt $HPCDL_ATTEMPT"; [ "$HPCDL_ATTEMPT" != 1 ] || exec sleep 600'
    site(cluster, f"software: {{python: {interpreter(tmp_path, body)}}}\npolicy: {{requeue: true}}")
    folder = submit(tmp_path)
    assert until(lambda: folder.job_log(1).read_text().count("rank") == 4, 60)
    assert subprocess.run(["qrerun", "1.standin"], check=False, timeout=60).returncode == 0
    assert until(lambda: status()["state"] == "completed", 60), status()
    told = status()
    assert [(each["number"], each["job_id"], each["state"]) for each in told["attempts"]] == [
        (1, "1.standin", "requeued"),
        (2, "1.standin", "completed"),
    ]
    assert "the scheduler ran its job again; it left no exit record" in told["attempts"][0]["reason"]
    assert cluster.job("1.standin")["run_count"] == 2
    for attempt in (1, 2):
        lines = [line for line in folder.job_log(attempt).read_text().splitlines() if line.startswith("rank")]
        assert sorted(lines) == [f"rank {rank} of attempt {attempt}" for rank in range(4)]
    assert not folder.job_exit(1).exists()
    assert json.loads(folder.job_exit(2).read_text()) == {"exit_code": 0}


def test_a_job_that_may_not_be_run_again_is_not(cluster, tmp_path):
    site(cluster, f"software: {{python: {interpreter(tmp_path, 'exec sleep 600')}}}")
    submit(tmp_path)
    answer = subprocess.run(["qrerun", "1.standin"], capture_output=True, text=True, check=False, timeout=60)
    assert (answer.returncode, answer.stderr) == (190, "qrerun: job is not rerunnable 1.standin\n")
    assert hpcdl("cancel", "last").returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_scripts_own_clock_carries_a_run_over_jobs_to_the_curve_of_one(cluster, tmp_path):
    """Nobody watches, and qsub is found in a job as a site's profile lets it be found."""
    site(cluster, f"software: {{setup: [export PYTHONPATH={TESTS.parent}]}}")
    whole = submit(tmp_path, "--wait")
    run = submit(tmp_path, walltime="00:01:10", seconds=3)
    assert until(lambda: status()["state"] == "completed", LONG_S), (status(), run.job_log(1).read_text())
    told = status()
    assert (told["step"], len(told["attempts"]) >= 3) == (36, True)
    assert states() == ["paused"] * (len(told["attempts"]) - 1) + ["completed"]
    assert [record.loss for record in metrics.steps(run)] == [record.loss for record in metrics.steps(whole)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_at_its_walltime_without_a_step_goes_on_once_and_says_why_not_again(
    cluster, tmp_path
):
    program = interpreter(tmp_path, "exec sleep 600", verb=f'exec {sys.executable} "$@"')
    setup = f"export PYTHONPATH={TESTS.parent}"
    site(cluster, f"software: {{python: {program}, setup: [{setup}]}}")
    folder = submit(tmp_path, walltime="00:00:20", lead=10)
    assert until(lambda: states() == ["timeout", "timeout"], 120), (status(), folder.job_log(1).read_text())
    chain = status()["chain"]
    assert (chain["goes_on"], chain["attempts"], chain["of"]) == (False, 2, 50)
    assert "saved no step" in chain["reason"]
    assert f"it does not go on by itself: {chain['reason']}" in " ".join(
        hpcdl("status", "last").stdout.split()
    )
