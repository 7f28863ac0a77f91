"""Runs that a real Slurm ends, preempts, requeues or loses a node of: they go on, and lose nothing they saved."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from cluster.slurm import SlurmCluster, step_daemon, step_processes, until
from processes import running

from hpcdl.run_folder import RunFolder
from hpcdl.runs import claims, metrics, store
from hpcdl.telemetry import RunEvent, read

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]

TESTS = Path(__file__).parents[1]
SPEC = """
name: chained
model: {{entry: "slow:program"}}
training: {{global_batch: 8, steps: {steps}, precision: fp32, optimizer: {{lr: 1.0e-2}}}}
parallelism: {{data: 2, microbatch: 4}}
resources: {{gpus: 2, nodes: {nodes}, walltime: "{walltime}"}}
checkpoint: {{every: {every}, before_limit_seconds: {lead}}}
environment: {{SLOW_SECONDS: "{seconds}"}}
chain: {{attempts: {attempts}}}
"""
USUAL = {
    "steps": 32, "nodes": 1, "walltime": "00:10:00", "every": 1, "lead": 60, "seconds": 1, "attempts": 20
}  # fmt: skip
LONG_S = 800


class Terminal:
    """The command line, with a site of its own."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.folder, self.cluster = folder, cluster
        self.site = folder / "site.yaml"
        self.site.write_text(cluster.site.read_text())
        shutil.copy(TESTS / "slow.py", folder)
        own = {"HPCDL_RUNS": str(folder / "runs"), "HPCDL_SITE": str(self.site)}
        self.environment = os.environ | cluster.env | own
        self.folders: list[RunFolder] = []

    def hpcdl(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hpcdl", *map(str, arguments)]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=LONG_S, check=False
        )

    def beside(self, *arguments: object) -> AbstractContextManager[subprocess.Popen[str]]:
        """The same, beside what a block does."""
        command = [sys.executable, "-m", "hpcdl", *map(str, arguments)]
        pipe = subprocess.PIPE
        return running(command, env=self.environment, stdout=pipe, stderr=pipe)

    def submit(self, *flags: object, **changes: object) -> RunFolder:
        spec = self.folder / "chained.yaml"
        spec.write_text(SPEC.format(**USUAL | changes))
        answer = self.hpcdl("submit", spec, "--json", *flags)
        assert answer.returncode == 0, answer.stderr
        self.folders.append(RunFolder(Path(json.loads(answer.stdout)["path"])))
        return self.folders[-1]

    def status(self, folder: RunFolder) -> dict[str, Any]:
        answer = self.hpcdl("status", folder.path, "--json")
        assert answer.returncode == 0, answer.stderr
        told: dict[str, Any] = json.loads(answer.stdout)
        return told

    def wait(self, folder: RunFolder, good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + LONG_S
        while not good(told := self.status(folder)):
            assert time.monotonic() < deadline, told
            time.sleep(1)
        return told


@pytest.fixture
def terminal(slurm_cluster: SlurmCluster, tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(slurm_cluster, tmp_path)
    yield found
    for folder in found.folders:
        found.hpcdl("cancel", folder.path)


def losses(folder: RunFolder) -> list[float]:
    return [record.loss for record in metrics.steps(folder)]


def states(told: dict[str, Any]) -> list[str]:
    return [attempt["state"] for attempt in told["attempts"]]


def logs(folder: RunFolder) -> str:
    return "".join(f"== {path}\n{path.read_text()}" for path in sorted(folder.path.glob("logs/*/*.log")))


def test_a_run_longer_than_its_walltime_goes_on_from_job_to_job_to_the_curve_of_one(terminal):
    """Nobody watches: each job submits the next one itself. Slurm warns half a minute early."""
    whole = terminal.submit("--wait", seconds=0)
    run = terminal.submit(walltime="00:01:00", lead=10, seconds=3)
    told = terminal.wait(run, lambda told: told["state"] not in ("queued", "running", "paused", "prepared"))
    assert told["state"] == "completed", logs(run)
    assert (told["step"], len(told["attempts"]) >= 3) == (32, True), states(told)
    assert states(told) == ["paused"] * (len(told["attempts"]) - 1) + ["completed"]
    assert len({attempt["job_id"] for attempt in told["attempts"]}) == len(told["attempts"])
    assert losses(run) == losses(whole)
    for number in range(1, len(told["attempts"])):
        assert f"goes on as attempt {number + 1}, job " in run.job_log(number).read_text()
        assert json.loads(run.job_exit(number).read_text()) == {"exit_code": 0}


def test_two_jobs_that_save_no_step_are_the_last_and_the_run_says_why(terminal):
    """A step takes longer than the walltime, so Slurm kills both; this cluster leaves them 10 s after TERM."""
    run = terminal.submit(walltime="00:01:00", lead=0, seconds=1000)
    terminal.wait(run, lambda told: states(told)[0] == "timeout")
    terminal.hpcdl("advance", run.path)  # unless the job did it
    told = terminal.wait(run, lambda told: states(told) == ["timeout", "timeout"])
    chain = told["chain"]
    assert (chain["goes_on"], chain["attempts"], chain["of"]) == (False, 2, 20)
    assert chain["reason"] == "its newest 2 attempts saved no step, and chain.without_progress is 2"
    (noted,) = [event for event in store.events(run) if event.kind == "chain ended"]
    assert (noted.attempt, noted.detail["reason"]) == (2, chain["reason"])
    assert chain["reason"] in " ".join(terminal.hpcdl("status", run.path).stdout.split())
    again = terminal.hpcdl("advance", run.path)
    assert (again.returncode, "does not go on now: its newest 2" in again.stdout) == (0, True)
    assert terminal.hpcdl("resume", run.path).returncode == 0  # by hand it goes on all the same
    assert len(terminal.status(run)["attempts"]) == 3


def saved(run: RunFolder, attempt: int) -> bool:
    """Whether an attempt has saved a step."""
    events = read(run.engine_events, RunEvent)
    return any((event.kind, event.attempt) == ("checkpoint", attempt) for event in events)


def again(terminal: Terminal) -> None:
    """Let the site's jobs be run again by Slurm."""
    terminal.site.write_text(f"{terminal.site.read_text()}policy: {{requeue: true}}\n")


def test_a_job_that_an_administrator_requeues_is_another_attempt_under_its_id(terminal):
    again(terminal)
    whole = terminal.submit("--wait", seconds=0)
    run = terminal.submit(seconds=0.5)
    assert until(lambda: saved(run, 1), LONG_S)
    job_id = terminal.status(run)["job_id"]
    assert terminal.cluster.run("scontrol", "requeue", job_id).returncode == 0
    waiting = terminal.wait(run, lambda told: "BeginTime" in (told["reason"] or ""))
    assert states(waiting) == ["queued"]
    advanced = terminal.hpcdl("advance", run.path)
    assert (advanced.returncode, advanced.stdout.strip()) == (
        0,
        f"{run.path.name} does not go on now: it is queued",
    )
    # Within a second or two slurmd still has the job for revoked: it would fail, and drain the node.
    assert until(lambda: not processes_of(terminal.cluster, f"SLURM_JOB_ID={job_id}"), LONG_S)
    time.sleep(5)
    terminal.cluster.run("scontrol", "update", f"jobid={job_id}", "starttime=now")
    told = terminal.wait(run, lambda told: told["state"] == "completed")
    assert [(each["job_id"], each["state"]) for each in told["attempts"]] == [
        (job_id, "requeued"),
        (job_id, "completed"),
    ]
    assert "the scheduler ran its job again; it was told to end (SIGTERM)" in told["attempts"][0]["reason"]
    assert losses(run) == losses(whole)
    assert claims.claims(run)[2] == f"requeued {job_id}"
    assert f"job {job_id} runs again, as attempt 2" in run.job_log(1).read_text()
    assert json.loads(run.job_exit(1).read_text())["exit_code"] != 0
    assert json.loads(run.job_exit(2).read_text()) == {"exit_code": 0}
    assert all(run.rank_log(attempt, 1).read_text() for attempt in (1, 2))


def urgent(terminal: Terminal) -> None:
    """Let a job of higher priority take every node for a moment."""
    asked = ("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null")
    assert terminal.cluster.run(*asked, "--wrap=sleep 2").returncode == 0


def test_a_job_that_is_preempted_and_not_requeued_goes_on_where_somebody_waits_for_it(terminal):
    whole = terminal.submit("--wait", seconds=0)
    run = terminal.submit(seconds=0.5)
    with terminal.beside("logs", run.path, "--follow") as watching:
        assert until(lambda: saved(run, 1), LONG_S)
        urgent(terminal)
        out, err = watching.communicate(timeout=LONG_S)
    told = terminal.status(run)
    assert (watching.returncode, states(told)) == (0, ["preempted", "completed"]), (out, err)
    assert told["attempts"][0]["job_id"] != told["attempts"][1]["job_id"]
    assert losses(run) == losses(whole)


def test_a_job_that_is_preempted_and_requeued_is_another_attempt_under_its_id(terminal):
    again(terminal)
    whole = terminal.submit("--wait", seconds=0)
    run = terminal.submit(seconds=0.5)
    assert until(lambda: saved(run, 1), LONG_S)
    urgent(terminal)
    told = terminal.wait(run, lambda told: told["state"] == "completed")
    assert states(told) == ["requeued", "completed"]
    assert len({attempt["job_id"] for attempt in told["attempts"]}) == 1
    assert losses(run) == losses(whole)


def test_a_run_that_loses_a_node_goes_on_without_it(tmp_path):
    """Everything on the node dies, its slurmd too; Slurm takes a while to notice."""
    place = tempfile.TemporaryDirectory(prefix="slurm-")
    with place as folder, SlurmCluster(Path(folder), nodes=3, gpus=2, dialect="SlurmdTimeout=10") as cluster:
        terminal = Terminal(cluster, tmp_path)
        whole = terminal.submit("--wait", seconds=0, nodes=2)
        run = terminal.submit(seconds=0.5, nodes=2)
        with terminal.beside("logs", run.path, "--follow") as watching:
            assert until(lambda: saved(run, 1), LONG_S)
            kill_node(cluster, "n1")
            out, err = watching.communicate(timeout=LONG_S)
        told = terminal.status(run)
        assert (watching.returncode, told["state"]) == (0, "completed"), (out, err)
        assert states(told) == ["node failed", "completed"]
        assert losses(run) == losses(whole)


def kill_node(cluster: SlurmCluster, node: str) -> None:
    """Kill a node's slurmd and all that runs on it; first of all what would still report to slurmctld."""
    (daemon,) = [each for each in cluster._daemons if list(each.args)[-3:-2] == [node]]
    own = processes_of(cluster, f"SLURMD_NODENAME={node}")
    daemon.kill()
    daemons = {parent for each in own for parent in step_daemon(each)}
    for pid in [*sorted(daemons), *own]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes_of(cluster: SlurmCluster, variable: str) -> list[int]:
    """Those of a cluster's steps that have a variable."""
    return [pid for pid in step_processes(cluster.folder) if variable.encode() in environment_of(pid)]


def environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def test_a_run_that_somebody_cancels_by_slurms_own_command_does_not_go_on(terminal):
    run = terminal.submit(seconds=0.5)
    assert until(lambda: saved(run, 1), LONG_S)
    terminal.cluster.run("scancel", terminal.status(run)["job_id"])
    told = terminal.wait(run, lambda told: told["state"] == "cancelled")
    assert (told["chain"]["goes_on"], told["chain"]["reason"]) == (False, "it was cancelled")
    assert "does not go on now: it was cancelled" in terminal.hpcdl("advance", run.path).stdout
    assert len(terminal.status(run)["attempts"]) == 1


def test_whoever_waits_for_a_run_waits_for_all_of_its_jobs(terminal):
    """A pause by hand ends the chain, as somebody wanted it; the command then does not exit with 0."""
    run = terminal.submit(seconds=0.5)
    assert until(lambda: saved(run, 1), LONG_S)
    run.request(1).write_text("please\n")
    told = terminal.wait(run, lambda told: told["state"] == "paused")
    assert (told["chain"]["goes_on"], told["chain"]["reason"]) == (False, "somebody wanted it to stop")
    again = terminal.hpcdl("resume", run.path, "--follow")
    assert (again.returncode, terminal.status(run)["state"]) == (0, "completed")
