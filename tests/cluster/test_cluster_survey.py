"""``hpcdl site init`` and ``check`` on a real Slurm: the draft is right, and it runs the quickstart."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.slurm import until
from processes import running

from hpcdl.sites.load import load_site

pytestmark = pytest.mark.slurm

HPCDL = (sys.executable, "-m", "hpcdl")
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


@pytest.fixture
def hpcdl(slurm_cluster, tmp_path):
    """Run ``hpcdl ARGS`` as a process of its own on this cluster."""
    environment = os.environ | slurm_cluster.env | {"HPCDL_RUNS": str(tmp_path / "runs")}

    def call(*args):
        command = [*HPCDL, *map(str, args)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=200, check=False
        )

    call.environment = environment
    return call


@pytest.fixture
def drafted(hpcdl, tmp_path):
    """A draft in which the cores compute: this cluster's GPUs are device files with nothing behind them."""
    path = tmp_path / "drafted.yaml"
    answer = hpcdl("site", "init", "--output", path, "--device", "cpu", "--job")
    assert answer.returncode == 0, answer.stderr
    return path


@pytest.mark.slow
def test_a_draft_passes_its_check_and_runs_the_quickstart(hpcdl, drafted):
    checked = hpcdl("site", "check", drafted, "--probe", "--json")
    assert checked.returncode == 0, checked.stdout
    (report,) = json.loads(checked.stdout)
    assert (report["findings"], report["machine"]["nodes"]) == ([], 4)
    few = ("--set", "training.steps=4", "--set", "checkpoint.every=4")
    run = hpcdl("submit", QUICKSTART, "--site", drafted, *few, "--wait")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "completed 4 steps" in run.stdout


def test_the_job_says_what_only_a_node_knows(drafted, tmp_path):
    """Slurm was told that a node has 1000 MB and holds no job to it; the node has what this machine has."""
    (node,) = load_site(str(drafted)).nodes.values()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    assert node.host_memory == f"{physical}MiB"
    assert (node.cores, node.devices, node.local_storage) == (8, 8, "/tmp")
    assert list((tmp_path / "runs").iterdir()) == []  # a job that reported leaves nothing


def test_a_draft_of_gpus_that_nobody_recognises_says_so(hpcdl):
    draft = hpcdl("site", "init", "--job").stdout
    assert "gpu_request: gpus-per-node" in draft
    assert "model: unknown" in draft
    assert "nodes.*.device.*" in draft


def test_planted_differences_are_found_at_their_lines(hpcdl, drafted):
    text = drafted.read_text().replace("01:00:00", "02:00:00").replace("  urgent:", "  hurried:")
    drafted.write_text(text.replace("    cores: 8", "    cores: 16").replace("max_nodes: 4", "max_nodes: 5"))
    checked = hpcdl("site", "check", drafted, "--probe", "--json")
    assert checked.returncode == 2
    (report,) = json.loads(checked.stdout)
    found = {finding["field"]: finding for finding in report["findings"] if finding["severity"] == "error"}
    assert set(found) == {
        "partitions.batch.walltime", "partitions.batch.max_nodes", "partitions.hurried", "nodes.cpu8.cores",
    }  # fmt: skip
    lines = text.splitlines()
    for field, words in (("partitions.hurried", "hurried:"), ("nodes.cpu8.cores", "cores:")):
        line = int(found[field]["where"].split(":")[1])
        assert words in lines[line - 1] or words in lines[line - 2]


def test_a_job_on_a_partition_that_is_down_is_refused_in_slurms_words(hpcdl, slurm_cluster, tmp_path):
    slurm_cluster.run("scontrol", "update", "partitionname=urgent", "state=inactive")
    try:
        answer = hpcdl("site", "init", "--job", "--partition", "urgent")
    finally:
        slurm_cluster.run("scancel", "--partition=urgent")
        slurm_cluster.run("scontrol", "update", "partitionname=urgent", "state=up")
    assert answer.returncode == 4
    assert "Slurm refused the job" in answer.stderr


def test_ctrl_c_cancels_the_job(hpcdl, slurm_cluster):
    """On a partition that is down the job waits for ever."""
    queued = ("squeue", "-h", "-p", "urgent", "-o", "%i")
    slurm_cluster.run("scontrol", "update", "partitionname=urgent", "state=down")
    try:
        command = [*HPCDL, "site", "init", "--job", "--partition", "urgent"]
        pipe = subprocess.PIPE
        with running(command, env=hpcdl.environment, stdout=pipe, stderr=pipe) as waiting:
            assert until(lambda: bool(slurm_cluster.run(*queued).stdout.strip()), 120)
            waiting.send_signal(signal.SIGINT)
            waiting.communicate(timeout=120)
        assert waiting.returncode != 0
        assert until(lambda: not slurm_cluster.run(*queued).stdout.strip(), 30)
    finally:
        slurm_cluster.run("scancel", "--partition=urgent")
        slurm_cluster.run("scontrol", "update", "partitionname=urgent", "state=up")
