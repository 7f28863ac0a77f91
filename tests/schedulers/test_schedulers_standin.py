"""A run by way of Flux and of LSF, from submission to its end, with the schedulers stood in for.

What the stand-ins answer is what pages and recordings say; that the real ones do is not shown here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from schedulers.standin import install

from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics

SPEC = (Path(__file__).parents[1] / "tiny.yaml").read_text()
WAYS = [("flux", "flux-run"), ("lsf", "jsrun")]
FEW = [WAYS[0], pytest.param(WAYS[1], marks=pytest.mark.slow)]


def site_file(folder: Path, kind: str, launcher: str) -> Path:
    """A machine of two cores a node that is asked as often as one likes."""
    device = {
        "kind": "cpu",
        "model": "core",
        "memory": "1GiB",
        "memory_bandwidth": 1,
        "peak_tflops": {"fp32": 0.01},
    }
    node = {"device": device, "devices": 2, "cores": 2, "host_memory": "2GiB", "links": {"intra_node": 1}}
    machine = {
        "name": "standin",
        "scheduler": {"kind": kind, "poll_seconds": 0.2},
        "launch": {"launcher": launcher},
        "partitions": {"normal": {"node": "cpu", "kind": "queue"}},
        "default_partition": "normal",
        "nodes": {"cpu": node},
    }
    path = folder / "standin.yaml"
    path.write_text(yaml.safe_dump(machine))
    return path


@pytest.fixture
def hpcdl(tmp_path, request):
    """Run ``hpcdl ARGS`` on the stand-in machine of this way, as a process of its own."""
    kind, launcher = request.param
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    environment = os.environ | {
        "HPCDL_RUNS": str(tmp_path / "all my runs"),
        "HPCDL_SITE": str(site_file(tmp_path, kind, launcher)),
        "PATH": install(tmp_path, kind),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("LSF_ENVDIR", None)

    def call(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hpcdl", *map(str, args)]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )

    return call


def submitted(hpcdl, tmp_path: Path, *args: str) -> RunFolder:
    path = tmp_path / "tiny.yaml"
    path.write_text(SPEC)
    answer = hpcdl("submit", path, "--json", *args)
    assert answer.returncode == 0, answer.stderr
    return RunFolder(Path(json.loads(answer.stdout)["path"]))


@pytest.mark.parametrize("hpcdl", WAYS, indirect=True, ids=["flux", "lsf"])
def test_run_trains_to_its_end_and_its_state_is_told(hpcdl, tmp_path):
    folder = submitted(hpcdl, tmp_path, "--wait")
    losses = [[record.loss for record in metrics.steps(folder, rank)] for rank in range(2)]
    assert len(losses[0]) == 6
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == losses[1]
    told = json.loads(hpcdl("status", "last", "--json").stdout)
    assert (told["state"], told["attempts"][0]["exit_code"]) == ("completed", 0)


@pytest.mark.parametrize("hpcdl", FEW, indirect=True, ids=["flux", "lsf"])
def test_run_is_cancelled_while_it_trains(hpcdl, tmp_path):
    folder = submitted(hpcdl, tmp_path, "--set", "training.steps=100000")
    end = time.monotonic() + 200
    while not metrics.steps(folder, 0):
        assert time.monotonic() < end, folder.job_log(1).read_text()
        time.sleep(0.1)
    assert json.loads(hpcdl("status", "last", "--json").stdout)["state"] == "running"
    assert hpcdl("cancel", "last").returncode == 0
    end = time.monotonic() + 200
    while (state := json.loads(hpcdl("status", "last", "--json").stdout)["state"]) == "running":
        assert time.monotonic() < end
        time.sleep(0.2)
    assert state == "cancelled"
    assert hpcdl("cancel", "last").returncode == 0
