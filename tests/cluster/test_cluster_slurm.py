"""The Slurm backend against a real Slurm: every claim about states, codes and quoting, seen from outside."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster.slurm import SlurmCluster, step_processes, until
from schedulers.sample import HOSTILE, HOSTILE_NAME, interpreter, job, prepared, site

from hpcdl import shell
from hpcdl.errors import SchedulerError
from hpcdl.run_folder import RunFolder
from hpcdl.schedulers import slurm
from hpcdl.schedulers.base import Job, JobState, Report
from hpcdl.schedulers.script import render
from hpcdl.sites.site import Site
from hpcdl.spec import load

pytestmark = pytest.mark.slurm


@pytest.fixture
def machine(slurm_cluster: SlurmCluster) -> Site:
    return load.validate(load.read(slurm_cluster.site), Site)


def submit(work: Job) -> str:
    folder = RunFolder(work.folder)
    folder.script.write_text(render(work))
    return slurm.submitted(shell.run(slurm.submit(folder.script), cwd=folder.path))


def ask(job_id: str) -> Report | None:
    for query in slurm.QUERIES:
        found = query.parse(shell.run(query.command([job_id])))
        if job_id in found:
            return found[job_id]
    return None


def wait_for(job_id: str, good: Callable[[Report], bool], timeout_s: float = 120) -> Report:
    deadline = time.monotonic() + timeout_s
    while (seen := ask(job_id)) is None or not good(seen):
        assert time.monotonic() < deadline, f"job {job_id} is still {seen}"
        time.sleep(0.1)
    return seen


def end_of(job_id: str) -> Report:
    return wait_for(job_id, lambda seen: seen.state.over)


def start(tmp_path: Path, machine: Site, body: str, **asked) -> tuple[str, RunFolder]:
    """Submit a job whose ranks run ``body``."""
    folder = prepared(tmp_path / "run")
    return submit(job(folder.path, machine, python=interpreter(tmp_path, body), **asked)), folder


def test_job_that_succeeds_is_completed_with_its_record(machine, tmp_path):
    job_id, folder = start(tmp_path, machine, "echo hello from $SLURM_PROCID", nodes=2)
    assert end_of(job_id) == Report(JobState.COMPLETED, "COMPLETED", 0)
    assert json.loads(folder.job_exit(1).read_text()) == {"exit_code": 0}
    assert sorted(folder.job_log(1).read_text().split("\n")) == [
        "",
        *(f"{n}: hello from {n}" for n in range(4)),
    ]


def test_job_that_fails_keeps_its_exit_code(machine, tmp_path):
    job_id, folder = start(tmp_path, machine, "exit 7", ranks_per_node=1)
    assert end_of(job_id) == Report(JobState.FAILED, "FAILED (NonZeroExitCode)", 7)
    assert json.loads(folder.job_exit(1).read_text()) == {"exit_code": 7}


def test_warning_before_the_limit_reaches_the_request_file_and_not_the_ranks(machine, tmp_path):
    """Slurm sends the signal at its own minute; here it is sent by hand to the batch script, as Slurm does."""
    warned = f"[ -s {tmp_path}/run/requests/attempt-1 ] && exit 0"
    body = f"touch {tmp_path}/ready; for i in {{1..600}}; do {warned}; sleep 0.1; done; exit 9"
    job_id, folder = start(tmp_path, machine, body, nodes=2)
    wait_for(job_id, lambda _: (tmp_path / "ready").exists())  # so the script has set its trap
    shell.run(["scancel", "--signal=USR1", "--batch", job_id])
    assert end_of(job_id) == Report(JobState.COMPLETED, "COMPLETED", 0)
    assert folder.request(1).read_text() == "the walltime is nearly over\n"


@pytest.mark.slow
def test_slurm_itself_warns_before_the_limit(machine, tmp_path):
    body = f"while ! [ -s {tmp_path}/run/requests/attempt-1 ]; do sleep 0.2; done; exit 0"
    job_id, _ = start(tmp_path, machine, body, walltime="00:01:00", checkpoint={"before_limit_seconds": 20})
    seen = wait_for(job_id, lambda seen: seen.state.over, 70)
    assert seen == Report(JobState.COMPLETED, "COMPLETED", 0)


def test_job_waits_runs_and_is_cancelled(machine, tmp_path):
    first, folder = start(tmp_path, machine, f"touch {tmp_path}/up; sleep 600", nodes=4, ranks_per_node=4)
    wait_for(first, lambda seen: seen.state is JobState.RUNNING and (tmp_path / "up").exists())
    second = submit(job(prepared(tmp_path / "second").path, machine, nodes=4, ranks_per_node=4))
    waiting = wait_for(second, lambda seen: "Resources" in seen.words or "Priority" in seen.words)
    assert waiting.state is JobState.QUEUED
    for job_id in (second, first):
        slurm.cancelled(shell.run(slurm.cancel(job_id)))
        assert end_of(job_id).state is JobState.CANCELLED
    assert json.loads(folder.job_exit(1).read_text())["exit_code"] != 0


def test_cancel_reaches_the_ranks_as_a_signal_they_can_act_on(machine, tmp_path):
    body = f"trap 'echo saved >{tmp_path}/saved; exit 0' TERM; touch {tmp_path}/ready; sleep 600 & wait"
    job_id, _ = start(tmp_path, machine, body, ranks_per_node=1)
    wait_for(job_id, lambda _: (tmp_path / "ready").exists())
    slurm.cancelled(shell.run(slurm.cancel(job_id)))
    end_of(job_id)
    assert (tmp_path / "saved").read_text() == "saved\n"


def test_rank_that_fails_ends_the_others(machine, tmp_path):
    began = time.monotonic()
    job_id, _ = start(tmp_path, machine, '[ "$SLURM_PROCID" = 1 ] && exit 7; sleep 600', nodes=2)
    assert end_of(job_id).state is JobState.FAILED
    assert time.monotonic() - began < 240


def test_several_jobs_are_told_apart_by_one_question(machine, tmp_path):
    ids = []
    for code in (0, 3):
        (tmp_path / str(code)).mkdir()
        ids.append(start(tmp_path / str(code), machine, f"exit {code}", ranks_per_node=1)[0])
    for job_id in ids:
        end_of(job_id)
    found = slurm.QUERIES[0].parse(shell.run(slurm.QUERIES[0].command([*ids, "99999"])))
    assert {job_id: seen.exit_code for job_id, seen in found.items()} == dict(zip(ids, (0, 3), strict=True))


def test_unknown_jobs_are_absent(machine):
    assert ask("99999") is None
    for query in slurm.QUERIES:
        assert query.parse(shell.run(query.command(["99998", "99999"]))) == {}


def test_cancelling_a_job_that_is_over_is_no_error(machine, tmp_path):
    job_id, _ = start(tmp_path, machine, "true", ranks_per_node=1)
    end_of(job_id)
    for gone in (job_id, "99999"):
        slurm.cancelled(shell.run(slurm.cancel(gone)))


def test_refused_job_gives_sbatchs_own_words(slurm_cluster, tmp_path):
    folder = prepared(tmp_path / "run")
    with pytest.raises(SchedulerError, match="invalid partition specified: nosuch"):
        submit(job(folder.path, site(partitions={"batch": {"name": "nosuch"}})))


def test_controller_that_is_away_is_an_error_and_no_end(machine, monkeypatch, tmp_path, slurm_cluster):
    configuration = Path(slurm_cluster.env["SLURM_CONF"]).read_text()
    elsewhere = "\n".join(
        "SlurmctldPort=1" if line.startswith("SlurmctldPort") else line for line in configuration.splitlines()
    )
    (tmp_path / "slurm.conf").write_text(elsewhere + "\nMessageTimeout=1\n")
    (tmp_path / "gres.conf").touch()
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    query = slurm.QUERIES[0]
    with pytest.raises(SchedulerError, match=r"(?i)slurm does not answer: .*controller"):
        query.parse(shell.run(query.command(["1"])))


def test_fake_gpus_are_handed_out(machine, tmp_path):
    """The site's GPU request is understood by a real Slurm, whatever the ranks compute on."""
    job_id, folder = start(tmp_path, machine, "echo $CUDA_VISIBLE_DEVICES", nodes=2, ranks_per_node=4)
    assert end_of(job_id).state is JobState.COMPLETED
    assert folder.job_log(1).read_text().count(": 0,1,2,3") == 8


def test_one_device_per_task_gives_each_rank_its_own(slurm_cluster, tmp_path):
    machine = site(launch={"gpu_visibility": "one_per_task"})
    job_id, folder = start(tmp_path, machine, "echo $CUDA_VISIBLE_DEVICES", ranks_per_node=4)
    assert end_of(job_id).state is JobState.COMPLETED
    assert sorted(folder.job_log(1).read_text().splitlines()) == [f"{rank}: {rank}" for rank in range(4)]


@pytest.mark.parametrize("visibility", ["all", "one_per_task"])
def test_device_order_of_the_site_reaches_the_ranks(slurm_cluster, tmp_path, visibility):
    """Slurm sets CUDA_VISIBLE_DEVICES in every task, so an export in the script would not arrive."""
    machine = site(
        launch={"gpu_visibility": visibility, "device_order": [3, 2, 1, 0]},
        scheduler={"forbidden": ["--gpus-per-task"]},
    )
    job_id, folder = start(tmp_path, machine, "echo $CUDA_VISIBLE_DEVICES", ranks_per_node=4)
    assert end_of(job_id).state is JobState.COMPLETED
    expected = [f"{n}: {'3,2,1,0' if visibility == 'all' else 3 - n}" for n in range(4)]
    assert sorted(folder.job_log(1).read_text().splitlines()) == expected


def test_hostile_text_arrives_in_every_rank_and_nothing_of_it_runs(machine, tmp_path):
    """Values and a path made of shell syntax, over sbatch and srun on two nodes."""
    folder = prepared(tmp_path / HOSTILE_NAME)
    body = f'for n in {" ".join(HOSTILE)}; do printf "%s=%s\\0" "$n" "${{!n}}"; done >"{tmp_path}/seen-$SLURM_PROCID"; printf "%s" "${{@: -1}}" >"{tmp_path}/folder-$SLURM_PROCID"'
    python = interpreter(tmp_path, body)
    job_id = submit(job(folder.path, machine, nodes=2, python=python, environment=HOSTILE))
    assert end_of(job_id).state is JobState.COMPLETED, folder.job_log(1).read_text()
    expected = "".join(f"{name}={value}\0" for name, value in HOSTILE.items()).encode()
    for rank in range(4):
        assert (tmp_path / f"seen-{rank}").read_bytes() == expected
        assert (tmp_path / f"folder-{rank}").read_text() == str(folder.path)
    assert not list(tmp_path.rglob("pwned*"))
    assert folder.job_exit(1).exists()


def test_mpi_ranks_find_each_other_under_srun(machine, tmp_path):
    """The site's --mpi starts one MPI world of all ranks, not a world of one a rank."""
    pytest.importorskip("mpi4py")
    program = "from mpi4py import MPI; w = MPI.COMM_WORLD; print(w.allreduce(w.rank), w.size, flush=True)"
    body = f"exec {sys.executable} -c '{program}'"
    job_id, folder = start(tmp_path, machine, body, nodes=2, transport="mpi")
    assert end_of(job_id).state is JobState.COMPLETED, folder.job_log(1).read_text()
    assert sorted(folder.job_log(1).read_text().splitlines()) == [f"{rank}: 6 4" for rank in range(4)]


def test_job_that_makes_way_for_an_urgent_one_is_preempted(machine, tmp_path):
    """Not requeued, as the site's policy says: hpcdl itself decides about another attempt."""
    job_id, _ = start(tmp_path, machine, "sleep 600", nodes=4, ranks_per_node=4)
    wait_for(job_id, lambda seen: seen.state is JobState.RUNNING)
    urgent = submit(
        job(prepared(tmp_path / "urgent").path, machine, nodes=4, queue="urgent", python="/bin/true")
    )
    assert end_of(job_id).state is JobState.PREEMPTED
    assert end_of(urgent).state is JobState.COMPLETED


def test_job_whose_node_is_lost_says_so(machine, tmp_path, slurm_cluster):
    job_id, _ = start(tmp_path, machine, "sleep 600", nodes=2)
    wait_for(job_id, lambda seen: seen.state is JobState.RUNNING)
    slurm_cluster.run("scontrol", "update", "nodename=n1", "state=down", "reason=test")
    try:
        assert end_of(job_id).state is JobState.NODE_FAILED
    finally:
        slurm_cluster.run("scontrol", "update", "nodename=n1", "state=resume")


@pytest.mark.slow
def test_a_cluster_that_is_stopped_under_a_running_step_leaves_no_process(slurm_cluster):
    """A slurmstepd outlives its slurmd if that ends at the wrong moment; two were found hours later."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        with SlurmCluster(Path(folder), nodes=1, gpus=1) as other:
            other.run("sbatch", "--output=/dev/null", "--wrap=sleep 600")
            assert until(lambda: bool(step_processes(other.folder)), 120)
            for daemon in other._daemons[2:]:
                daemon.kill()
        assert until(lambda: not step_processes(other.folder), 5)


def test_two_clusters_run_at_once_and_leave_nothing_behind(slurm_cluster):
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        with SlurmCluster(Path(folder), nodes=1, gpus=2) as other:
            pids = [daemon.pid for daemon in other._daemons]
            assert other.run("srun", "--gpus=2", "true").returncode == 0
            assert len(other.run("sinfo", "-h", "-N").stdout.split("\n")) == 3
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert slurm_cluster.run("scontrol", "ping").returncode == 0
