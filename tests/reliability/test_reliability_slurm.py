"""What Slurm does to a run, or leaves undone, on a real Slurm."""

from __future__ import annotations

import json
import os
import shutil
import time
from functools import partial

import pytest
from cluster.breaking import configured, nothing_starts, without_controller, without_daemon_of
from cluster.slurm import step_processes
from reliability.rows import scenario

from hpcdl.telemetry import read_exits

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
slurm = partial(scenario, "Slurm")


@slurm(
    "a node that dies",
    "`slurmd` of the second node is killed, and all that ran under it; Slurm says NODE_FAIL",
)
def test_slurmd_of_a_node_stops(drill, tell, cluster):
    drill.trains()
    with configured(cluster, SlurmdTimeout=6), without_daemon_of(cluster, "n2"):
        drill.kill_node("n2")
        drill.reports("node failed", who=1, exit_code=143, cause="node lost")
    tell(drill.resumes(lost=1))


@slurm(
    "a node that is cut off",
    "only `slurmd` of the second node is killed, and Slurm says NODE_FAIL; rank 1 lives on there until it sees "
    "that the next attempt has begun",
)
def test_a_rank_that_lives_on_leaves_the_run_to_the_next_attempt(drill, tell, cluster):
    """Slurm cannot reach what it left on the node, which would write to the same run folder."""
    drill.trains()
    drill.order(1, "stay")
    drill.wait(lambda: not (drill.control / "rank-1").exists(), "the stay of rank 1")
    left_alone = drill.process(1)
    with configured(cluster, SlurmdTimeout=6), without_daemon_of(cluster, "n2"):
        drill.reports("node failed", who=1, exit_code=143, cause="node lost")
        assert left_alone in drill.processes_of(1)
        row = drill.resumes(lost=1)
        drill.wait(lambda: left_alone not in drill.processes_of(1), "the end of the rank that was left")
    record = next(each for each in read_exits(drill.folder.exits(1)) if each.rank == 1)
    assert (record.exception, "attempt 2 of the run has begun" in record.reason) == ("PeerLostError", True)
    tell(row)


@slurm("scancel while it waits", "before it was given a node")
def test_scancel_while_pending(drill, tell, cluster):
    with nothing_starts(cluster):
        drill.submit()
        cluster.run("scancel", drill.job_id())
        drill.reports("cancelled", cause="cancelled")
    tell(drill.resumes(lost=0))


@slurm("scancel while it starts", "when its ranks are there and none has done a step")
def test_scancel_while_starting(drill, tell, cluster):
    drill.submit()
    drill.hold(after=0)  # however late this sees them, they have not done a step
    drill.wait(lambda: len(drill.processes()) == 2, "two ranks")
    cluster.run("scancel", drill.job_id())
    drill.reports("cancelled", exit_code=143, cause="cancelled")
    assert drill.done == 0
    tell(drill.resumes(lost=0))


@slurm("scancel while it trains", "in step 8")
def test_scancel_while_running(drill, tell, cluster):
    drill.trains()
    cluster.run("scancel", drill.job_id())
    drill.reports("cancelled", exit_code=143, cause="cancelled")
    tell(drill.resumes(lost=1))


@slurm("scancel while it saves itself", "in step 8; rank 0 has saved step 6, and rank 1 has not yet")
def test_scancel_while_checkpointing(drill, tell, cluster):
    drill.saves()
    cluster.run("scancel", drill.job_id())
    drill.reports("cancelled", exit_code=143, cause="cancelled")
    assert drill.saved() == 3
    tell(drill.resumes(lost=4))


@slurm("preemption", "a job of a partition of higher priority wants all nodes")
def test_preemption_by_a_higher_partition(drill, tell, cluster):
    drill.trains()
    with drill.watched():
        urgent = ("sbatch", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null")
        assert cluster.run(*urgent, "--wrap=true").returncode == 0
        then = "by itself, as somebody watches"
        drill.wait(drill.first_is_gone, "the end of the ranks")
        row = drill.goes_on("preempted", exit_code=143, cause="preempted", lost=1, then=then)
    tell(row)


@slurm(
    "requeue by the administrator", "`scontrol requeue` in step 8, where the site lets Slurm run a job again"
)
def test_requeue_by_the_administrator(drill, tell, cluster, tmp_path):
    again = tmp_path / "again.yaml"
    again.write_text(f"{cluster.site.read_text()}\npolicy: {{requeue: true}}\n")
    drill.variables["HPCDL_SITE"] = str(again)
    drill.trains()
    assert cluster.run("scontrol", "requeue", drill.job_id()).returncode == 0
    drill.wait(
        lambda: "BeginTime" in cluster.run("squeue", "-h", "-o", "%r").stdout, "its place in the queue"
    )
    # Within a second or two slurmd still has the job for revoked: it would fail, and drain the node.
    drill.wait(lambda: not step_processes(cluster.folder), "the end of its former life")
    time.sleep(5)
    cluster.run("scontrol", "update", f"jobid={drill.job_id()}", "starttime=now")  # not in two minutes
    tell(drill.goes_on("requeued", exit_code=143, lost=1, then="by itself, as the same job"))


@slurm("`slurmctld` down during submit", "submitted while nobody answers")
def test_controller_down_during_submit(drill, tell, cluster):
    with without_controller(cluster):
        drill.submit_in_vain("Slurm does not answer")
        drill.stands("prepared")
    tell(drill.resumes(lost=0))


@slurm("`slurmctld` down during status", "asked for its state while nobody answers")
def test_controller_down_during_status(drill, tell, cluster):
    drill.trains()
    before = drill.status()
    with without_controller(cluster):
        drill.outlast_answers()
        answer = drill.hpcdl("status", drill.folder.path, "--json")
        assert answer.returncode == 4
        assert "Slurm does not answer" in answer.stderr
        assert json.loads(answer.stdout) == before
    tell(drill.completes(then="undisturbed"))


@slurm("`slurmctld` down for a minute", "the run ends in that time, and nobody can be told")
def test_controller_down_for_a_minute(drill, tell, cluster):
    drill.trains()
    with without_controller(cluster):
        end = time.monotonic() + 60
        drill.let_go()
        drill.wait(lambda: drill.newest() == 12, "the last step")
        time.sleep(max(0.0, end - time.monotonic()))
    tell(drill.completes(then="undisturbed"))


@slurm("Slurm forgets it", "no accounting and `MinJobAge=2`: asked when Slurm no longer knows the job")
def test_slurm_forgets_the_job(drill, tell, cluster):
    with configured(cluster, MinJobAge=2):
        drill.trains()
        job_id = drill.job_id()
        drill.order(1, "exit 7")
        drill.wait(lambda: "Invalid job id" in cluster.run("squeue", "-j", job_id).stderr, "oblivion")
    drill.reports("failed", who=1, exit_code=7)
    tell(drill.resumes(lost=1))


CLUSTERS = """#!/bin/bash
# {program} of a site with several clusters, as far as one can have that without Slurm's database.
arguments=()
for word; do
  [ "$word" = --clusters=main ] && named=1 || arguments+=("$word")
done
"""
SBATCH = 'answer=$({program} "$@") && echo "${{answer:+$answer;main}}"\n'
OTHERS = """[ -n "${{named-}}" ] || {{ echo "{name}: which cluster?" >&2; exit 1; }}
{head}exec {program} "${{arguments[@]}}"
"""


@slurm(
    "job id with a cluster name",
    "`sbatch` answers `7;main`, and nobody knows job 7 without `--clusters=main`; programs around Slurm's own "
    "stand for a site with several clusters, which needs Slurm's database",
)
def test_job_id_names_its_cluster(drill, tell, tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol", "sacct"):
        body = SBATCH if name == "sbatch" else OTHERS
        head = 'echo "CLUSTER: main"\n' if name == "squeue" else ""
        text = CLUSTERS.format(program=name) + body.format(name=name, program=shutil.which(name), head=head)
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    drill.trains()
    assert drill.status()["job_id"].endswith(";main")
    assert drill.hpcdl("cancel", drill.folder.path).returncode == 0
    drill.reports("cancelled", exit_code=143, cause="cancelled")
    tell(drill.resumes(lost=1))
