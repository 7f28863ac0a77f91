"""A run through a real Slurm on two devices, then on two nodes, then on one device: one curve."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TINY = Path(__file__).parents[1] / "tiny.yaml"
LONG = ("--set", "training.steps=8", "--set", "training.optimizer.warmup=4", "--set", "chain.attempts=1")


def told(hpcdl, folder):
    return json.loads(hpcdl("status", folder.path, "--json").stdout)


def wait_for(hpcdl, folder, state):
    deadline = time.monotonic() + 120
    while (now := told(hpcdl, folder))["state"] != state:
        assert time.monotonic() < deadline, now
        time.sleep(0.3)
    return now


def losses(folder):
    return [record.loss for record in metrics.steps(folder)]


def test_two_devices_then_two_nodes_then_one_device_are_one_curve(hpcdl, tmp_path):
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    spec = tmp_path / "tiny.yaml"
    spec.write_text(TINY.read_text())

    def submitted(*args):
        answer = hpcdl("submit", spec, "--json", *LONG, *args)
        assert answer.returncode == 0, answer.stderr
        return RunFolder(Path(json.loads(answer.stdout)["path"]))

    def paused(folder, attempt):
        """After the first step of an attempt: torch is not yet loaded when this is written."""
        folder.request(attempt).write_text("stop\n")
        assert wait_for(hpcdl, folder, "paused")["step"] < 8

    whole = losses(submitted("--wait"))
    folder = submitted()
    paused(folder, 1)
    drafted = hpcdl(
        "resume", folder.path, "--gpus", "4", "--nodes", "2", "--set", "parallelism=auto", "--dry-run"
    )
    assert "#SBATCH --nodes=2" in drafted.stdout
    assert len(told(hpcdl, folder)["attempts"]) == 1
    again = hpcdl(
        "resume",
        folder.path,
        "--gpus",
        "4",
        "--nodes",
        "2",
        "--set",
        "parallelism={pipeline: 2, data: 2}",
        "--json",
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["run"] == folder.path.name
    paused(folder, 2)
    refused = hpcdl("resume", folder.path, "--gpus", "7", "--set", "parallelism=auto")
    assert refused.returncode == 3
    assert "the nearest device counts that work" in refused.stderr
    assert hpcdl("resume", folder.path, "--gpus", "1", "--set", "parallelism=auto", "--wait").returncode == 0
    assert losses(folder) == pytest.approx(whole, rel=1e-5)
    end = told(hpcdl, folder)
    assert [each["state"] for each in end["attempts"]] == ["paused", "paused", "completed"]
    shapes = [each["decomposition"] for each in end["attempts"]]
    assert shapes == ["data 2", "data 2 × pipeline 2", "one rank"]
