"""The dialects that sites speak with Slurm, each understood by a real one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cluster.slurm import SlurmCluster, missing
from quick import one_in
from schedulers.sample import interpreter, job, prepared, site

from hpcdl import shell
from hpcdl.errors import SchedulerError
from hpcdl.run_folder import RunFolder
from hpcdl.schedulers import slurm
from hpcdl.schedulers.base import After, Array, Job, JobState, Report
from hpcdl.schedulers.script import render
from hpcdl.sites.site import Site
from hpcdl.workflow.states.asking import Outside, ask

pytestmark = pytest.mark.slurm

LIMITS = """
EnforcePartLimits=ALL
PartitionName=short Nodes=ALL MaxTime=10 MaxNodes=1 PriorityTier=1
"""
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


@pytest.fixture(scope="session")
def typed_cluster() -> Iterator[SlurmCluster]:
    """Two nodes with two fake GPUs of type a100 each, a feature a node, and a partition with limits."""
    if reason := missing():
        pytest.skip(f"NO SLURM TESTED: {reason}")
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        SlurmCluster(Path(folder), nodes=2, gpus=2, gpu_type="a100", dialect=LIMITS) as cluster,
    ):
        for node, feature in (("n1", "hbm40g"), ("n2", "hbm80g")):
            cluster.run("scontrol", "update", f"nodename={node}", f"availablefeatures={feature}")
        yield cluster


@pytest.fixture(autouse=True)
def here(typed_cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", typed_cluster.env["SLURM_CONF"])
    yield
    typed_cluster.run("scancel", "--user=root")


def machine(*, launch=None, partition=None, policy=None, **scheduler) -> Site:
    return site(
        scheduler={"accounting": False, "gpu_type": "a100", **scheduler},
        launch=launch or {},
        partitions={"batch": partition or {}, "urgent": {"node": "gpu"}, "short": {"node": "gpu"}},
        policy=policy or {},
    )


def submit(work: Job) -> str:
    folder = RunFolder(work.folder)
    folder.script.write_text(render(work))
    return slurm.submitted(shell.run(slurm.submit(folder.script), cwd=folder.path))


def start(tmp_path: Path, where: Site, body: str, **asked) -> tuple[str, RunFolder]:
    """Submit a job whose ranks run ``body``."""
    folder = prepared(tmp_path / "run")
    return submit(job(folder.path, where, python=interpreter(tmp_path, body), **asked)), folder


def wait_for(job_id: str, good: Callable[[Report], bool], timeout_s: float = 120) -> Report:
    deadline = time.monotonic() + timeout_s
    while (seen := ask(machine(), [job_id], Outside()).get(job_id)) is None or not good(seen):
        assert time.monotonic() < deadline, f"job {job_id} is still {seen}"
        time.sleep(0.1)
    return seen


def end_of(job_id: str) -> Report:
    return wait_for(job_id, lambda seen: seen.state.over)


def lines(folder: RunFolder) -> list[str]:
    return sorted(folder.job_log(1).read_text().splitlines())


@pytest.mark.parametrize("spelling", ["gpus-per-node", "gpus", "gres"])
@pytest.mark.parametrize("visibility", ["all", "one_per_task"])
def test_devices_of_a_type_are_asked_for_in_every_spelling(tmp_path, spelling, visibility):
    """A total, per node, or as generic resources: ranks see all devices of their node, or their own."""
    where = machine(gpu_request=spelling, launch={"gpu_visibility": visibility})
    job_id, folder = start(tmp_path, where, "echo $CUDA_VISIBLE_DEVICES", nodes=2)
    assert end_of(job_id).state is JobState.COMPLETED, folder.job_log(1).read_text()
    assert lines(folder) == [f"{rank}: {'0,1' if visibility == 'all' else rank % 2}" for rank in range(4)]


def test_devices_asked_for_by_rank_are_seen_by_their_rank(tmp_path):
    where = machine(gpu_request="gpus-per-task", launch={"gpu_visibility": "one_per_task"})
    job_id, folder = start(tmp_path, where, "echo $CUDA_VISIBLE_DEVICES", nodes=2)
    assert end_of(job_id).state is JobState.COMPLETED, folder.job_log(1).read_text()
    assert lines(folder) == [f"{rank}: {rank % 2}" for rank in range(4)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu_request": "gres", "gpu_type": "h100"}, "Requested node configuration is not available"),
        ({"partition": {"constraint": "hbm99g"}}, "Invalid feature specification"),
        ({"memory_per_device": "2GiB"}, "Requested node configuration is not available"),
        ({"partition": {"directives": ["--partition=nosuch"]}}, "invalid partition specified: nosuch"),
        ({"partition": {"name": "short", "directives": ["--nodes=1"]}}, "Requested time limit is invalid"),
        ({"partition": {"name": "short", "directives": ["--time=5"]}}, "Node count specification invalid"),
        ({"cluster": "elsewhere"}, "elsewhere"),
    ],
)
def test_what_slurm_would_refuse_it_says_beforehand_in_its_own_words(tmp_path, changes, words):
    """Two nodes for half an hour, where something does not fit."""
    work = job(prepared(tmp_path / "run").path, machine(**changes), nodes=2)
    script = RunFolder(work.folder).script
    script.write_text(render(work))
    said = shell.run(slurm.PREFLIGHT.command(script), cwd=work.folder)
    with pytest.raises(SchedulerError, match=f"(?s)would refuse the job: .*{words}"):
        slurm.PREFLIGHT.parse(said)
    with pytest.raises(SchedulerError, match=f"(?s)refused the job: .*{words}"):
        submit(work)


def test_a_constraint_chooses_the_nodes(tmp_path):
    where = machine(partition={"constraint": "hbm80g"})
    job_id, folder = start(tmp_path, where, "echo $SLURMD_NODENAME")
    assert end_of(job_id).state is JobState.COMPLETED
    assert lines(folder) == ["0: n2", "1: n2"]


def test_memory_is_asked_for_with_the_devices(tmp_path, typed_cluster):
    job_id, _ = start(tmp_path, machine(memory_per_device="100MiB"), "sleep 600", nodes=2)
    wait_for(job_id, lambda seen: seen.state is JobState.RUNNING)
    assert "MinMemoryNode=200M" in typed_cluster.run("scontrol", "show", "job", job_id).stdout


def test_threads_of_cores_are_what_slurm_counts(tmp_path):
    where = site(scheduler={"accounting": False, "gpu_type": "a100"}, nodes={"gpu": {"threads_per_core": 2}})
    job_id, folder = start(tmp_path, where, "echo $SLURM_CPUS_PER_TASK")
    assert end_of(job_id).state is JobState.COMPLETED
    assert lines(folder) == ["0: 2", "1: 2"]


def test_slurm_says_when_a_job_would_start_and_keeps_nothing_of_it(tmp_path, typed_cluster):
    work = job(prepared(tmp_path / "run").path, machine())
    script = RunFolder(work.folder).script
    script.write_text(render(work))
    said = slurm.PREFLIGHT.parse(shell.run(slurm.PREFLIGHT.command(script), cwd=work.folder))
    assert abs(time.mktime(time.strptime(said, "%Y-%m-%dT%H:%M:%S")) - time.time()) < 600
    assert work.run.run not in typed_cluster.run("squeue", "--noheader", "--format=%j").stdout


def test_a_job_that_may_be_requeued_waits_again_when_it_made_way(tmp_path):
    job_id, _ = start(tmp_path, machine(policy={"requeue": True}), "sleep 600", nodes=2)
    wait_for(job_id, lambda seen: seen.state is JobState.RUNNING)
    urgent = prepared(tmp_path / "urgent")
    other = submit(job(urgent.path, machine(), nodes=2, queue="urgent", python="/bin/true"))
    assert end_of(other).state is JobState.COMPLETED
    waits = wait_for(job_id, lambda seen: seen.state is JobState.QUEUED)
    assert not waits.state.over


def test_elements_of_an_array_have_states_and_logs_of_their_own(tmp_path):
    """One at a time, so that some wait while others are over; one is cancelled while it waits."""
    folders = [prepared(tmp_path / f"run-{index}") for index in range(4)]
    body = "echo element $SLURM_ARRAY_TASK_ID; sleep 1; exit $SLURM_ARRAY_TASK_ID"
    work = job(folders[0].path, machine(), ranks_per_node=1, python=interpreter(tmp_path, body))
    array = submit(replace(work, array=Array(tuple(each.path for each in folders), at_once=1)))
    ids = [slurm.ELEMENTS.job_id(array, index) for index in range(4)]
    slurm.cancelled(shell.run(slurm.cancel(ids[3])))
    waiting = ask(machine(), ids, Outside())
    # Slurm forgets such an element at once: that it was cancelled stands in the run's own events.
    assert set(waiting) == set(ids[:3])
    assert waiting[ids[2]].state is JobState.QUEUED
    ends = [end_of(job_id) for job_id in ids[:3]]
    assert [(each.state, each.exit_code) for each in ends] == [
        (JobState.COMPLETED, 0), (JobState.FAILED, 1), (JobState.FAILED, 2),
    ]  # fmt: skip
    for index, folder in enumerate(folders[:3]):
        assert f"0: element {index}" in lines(folder)
    assert not folders[3].job_log(1).exists()


def test_an_array_longer_than_the_cluster_allows_is_refused(tmp_path):
    """MaxArraySize is 1001 unless set, and bounds the index."""
    folders = tuple(tmp_path / f"run-{index}" for index in range(1002))
    work = replace(job(prepared(folders[0]).path, machine()), array=Array(folders))
    with pytest.raises(SchedulerError, match="Invalid job array specification"):
        submit(work)


@pytest.mark.parametrize(
    ("ending", "code", "state"),
    one_in(
        2,
        [
            ("ok", 7, JobState.CANCELLED),  # and does not wait for ever
            ("ok", 0, JobState.COMPLETED),
            ("failed", 7, JobState.COMPLETED),
            ("any", 7, JobState.COMPLETED),
        ],
    ),
)
def test_a_job_waits_for_the_end_of_another(tmp_path, ending, code, state):
    first, _ = start(
        tmp_path, machine(), f"until [ -e {tmp_path}/go ]; do sleep 0.1; done; exit {code}", ranks_per_node=1
    )
    second = job(prepared(tmp_path / "second").path, machine(), ranks_per_node=1, python="/bin/true")
    job_id = submit(replace(second, after=After(ending, (first,))))
    wait_for(job_id, lambda seen: "Dependency" in seen.words)
    (tmp_path / "go").touch()
    assert end_of(job_id).state is state


def hpcdl(
    tmp_path: Path, cluster: SlurmCluster, *arguments: str, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run ``hpcdl ARGUMENTS`` with a site file of the cluster in which texts were replaced."""
    text = cluster.site.read_text().replace("poll_seconds", "gpu_type: a100\n  poll_seconds")
    for old, new in changes.items():
        text = text.replace(f"{old}:", new)
    file = tmp_path / "machine.yaml"
    file.write_text(text)
    environment = os.environ | cluster.env | {"HPCDL_RUNS": str(tmp_path / "runs"), "HPCDL_SITE": str(file)}
    return subprocess.run(
        [sys.executable, "-m", "hpcdl", *arguments], env=environment, capture_output=True, text=True, timeout=100, check=False
    )  # fmt: skip


def test_submitting_shows_when_the_job_would_start(tmp_path, typed_cluster):
    said = hpcdl(tmp_path, typed_cluster, "submit", str(QUICKSTART), "--nodes", "2")
    assert said.returncode == 0, said.stderr
    assert f"expected to start: {time.strftime('%Y-%m-%dT')}" in said.stdout


def test_a_dry_run_shows_it_beside_the_script(tmp_path, typed_cluster):
    said = hpcdl(tmp_path, typed_cluster, "submit", str(QUICKSTART), "--nodes", "2", "--dry-run")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("#!/bin/bash")
    assert f"expected to start: {time.strftime('%Y-%m-%dT')}" in said.stderr


def test_a_job_over_a_limit_that_the_site_file_does_not_know_is_refused_by_slurm(tmp_path, typed_cluster):
    """Exit code 4, Slurm's words, and nothing counts as submitted."""
    said = hpcdl(
        tmp_path,
        typed_cluster,
        "submit",
        str(QUICKSTART),
        "--nodes",
        "2",
        batch="short:",
        default_partition="default_partition: short #",
    )
    assert said.returncode == 4, said.stdout + said.stderr
    assert "Slurm would refuse the job" in said.stderr
    assert '"state": "refused"' in hpcdl(tmp_path, typed_cluster, "list", "--json").stdout
