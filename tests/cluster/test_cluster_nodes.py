"""A node on a real Slurm that has not what a rank needs: it is found, named, and not given to the run again."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from hpcdl.run_folder import RunFolder

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]

TESTS = Path(__file__).parents[1]
SPEC = """
name: nodes
model: {entry: "slow:program"}
training: {global_batch: 12, steps: 3, precision: fp32, optimizer: {lr: 1.0e-2}}
parallelism: {data: 3, microbatch: 4}
resources: {nodes: 3, walltime: "00:10:00"}
checkpoint: {every: 1}
"""

# On n2, a program that starts there gets one core, as where a job of somebody else was left behind.
PYTHON = """#!/bin/bash
[ "${SLURMD_NODENAME-}" != n2 ] || exec taskset -c 0 %(python)s "$@"
exec %(python)s "$@"
"""


@pytest.fixture
def site(slurm_cluster, tmp_path):
    """Four nodes with all cores of this machine each and one device, of which n2 is bad."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("NO BAD NODE TESTED: this machine has one core, of which none can be missing")
    python = tmp_path / "python"
    python.write_text(PYTHON % {"python": sys.executable})
    python.chmod(0o755)
    told = yaml.safe_load(slurm_cluster.site.read_text())
    told["nodes"]["fake"] |= {"devices": 1, "cores": os.cpu_count()}
    told["software"] = {"python": str(python)}
    # Not loopback, which says that all nodes are one machine, whose cores they share.
    told["rendezvous"] = {"address": "interface", "interface": "lo", "timeout_seconds": 120}
    path = tmp_path / "test-cluster.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def hosts(hpcdl, folder, attempt):
    answer = hpcdl("launch-info", folder.path, "--attempt", attempt, "--json")
    return answer.returncode, [host["name"] for host in json.loads(answer.stdout)["hosts"]], answer.stderr


def test_a_bad_node_is_refused_by_name_and_the_run_completes_without_it(hpcdl, site, tmp_path):
    shutil.copy(TESTS / "slow.py", tmp_path)
    spec = tmp_path / "nodes.yaml"
    spec.write_text(SPEC)
    answer = hpcdl("submit", spec, "--site", site, "--wait", "--json")
    assert answer.returncode == 0, answer.stderr
    folder = RunFolder(Path(json.loads(answer.stdout)["path"]))
    told = json.loads(hpcdl("status", folder.path, "--json").stdout)
    first = folder.rank_log(1, 1).read_text()
    assert [each["state"] for each in told["attempts"]] == ["failed", "completed"], first
    assert "rank 1 on n2: BadNodeError: node n2 is bad: " in told["attempts"][0]["reason"]
    assert "the layout gives" in told["attempts"][0]["reason"]
    assert "#SBATCH --exclude=n2\n" in folder.script.read_text()

    code, before, words = hosts(hpcdl, folder, 1)
    assert (code, before) == (5, ["n1", "n2", "n3"])
    assert "n2: rank 1: 1 core to run on (0)" in words
    assert hosts(hpcdl, folder, 2)[:2] == (0, ["n1", "n3", "n4"])
    screen = hpcdl("launch-info", folder.path).stdout
    assert "bad node n2 (attempt 1): " in screen
    assert "later attempts leave out n2" in screen


def test_a_node_that_the_user_names_is_never_given(hpcdl, site, tmp_path):
    shutil.copy(TESTS / "slow.py", tmp_path)
    spec = tmp_path / "nodes.yaml"
    spec.write_text(SPEC)
    flags = ("--set", "resources.exclude=[n2]", "--wait", "--json")
    answer = hpcdl("submit", spec, "--site", site, *flags)
    assert answer.returncode == 0, answer.stderr
    folder = RunFolder(Path(json.loads(answer.stdout)["path"]))
    assert hosts(hpcdl, folder, 1)[:2] == (0, ["n1", "n3", "n4"])
