"""Runs of which one rank really stands still: the run ends, and says which rank it was, where, and what to do."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_failures import end_of, prepared, rank_process

from hpcdl.runs import metrics
from hpcdl.runs.failures.causes import KINDS
from hpcdl.runs.record import RunState
from hpcdl.telemetry import read_heartbeat
from hpcdl.workflow.jobs import submitting

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
MODEL = TESTS / "hanging.py"
SPEC = """
name: hanging
model: {{entry: "hanging:program", arguments: {{fault: {fault}, rank: {rank}, seconds: {seconds}}}}}
training: {{global_batch: {batch}, steps: 100000, precision: fp32, optimizer: {{lr: 1.0e-2}}}}
parallelism: {{data: {ranks}, microbatch: 4}}
resources: {{gpus: {ranks}, walltime: "00:10:00"}}
chain: {{attempts: 1}}
health: {{hang_seconds: {limit}, preflight: "off"}}
"""


@pytest.fixture
def run(tmp_path):
    """A run of which a rank stands still, submitted."""

    def start(fault, rank=1, *settings, ranks=2, limit=4, seconds=1000):
        shutil.copy(MODEL, tmp_path)
        told = dict(fault=fault, rank=rank, ranks=ranks, limit=limit, seconds=seconds, batch=4 * ranks)
        spec = tmp_path / "own.yaml"
        spec.write_text(SPEC.format(**told))
        folder = prepared(spec, *settings)
        submitting.submit([folder])
        return folder

    return start


def hpcdl(*words):
    """What a command prints."""
    command = [sys.executable, "-m", "hpcdl", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("fault", "where", "code"),
    [
        ("sleep", "pipeline, forward of microbatch 0", r":\d+ in sleep"),
        ("loop", "pipeline, forward of microbatch 0", r":\d+ in loop"),
        ("data", "data", r":\d+ in __getitem__"),
    ],
)
def test_a_rank_that_stands_still_says_so_itself_with_its_place_in_the_code(run, fault, where, code):
    folder = run(fault)
    attempt, found = end_of(folder, 240)
    assert (attempt.state, attempt.exit_code) == (RunState.FAILED, 1)
    assert (found.culprit.rank, found.culprit.host) == (1, socket.gethostname())
    assert found.culprit.exception == "HangError"
    place = re.escape(f"{where}, at {folder.path.parents[1] / 'hanging.py'}") + code
    assert re.search(rf"stood still for \d+ s after step \d, {place}$", found.culprit.reason)
    assert found.cause.kind == "hang"
    assert found.cause.words.endswith(found.culprit.reason)
    logs = [folder.rank_log(1, rank).read_text() for rank in range(2)]
    assert all("no progress: stood still for " in log for log in logs)
    assert re.search(r'hanging\.py", line \d+ in (sleep|loop|__getitem__)', logs[1])
    assert "all_reduce over 2 ranks" in logs[0]
    assert f"after step {metrics.steps(folder)[-1].step}, " in found.culprit.reason


def test_a_rank_that_holds_the_interpreter_is_named_by_its_peers_and_its_stack_is_there(run):
    """None of its threads can run: the stack is printed by a timer that needs no interpreter."""
    folder = run("hold", ranks=3, rank=2)
    attempt, found = end_of(folder, 240)
    assert attempt.state is RunState.FAILED
    assert (found.culprit.rank, found.culprit.host) == (2, socket.gethostname())
    assert re.match(r"no sign of life for \d+ s; the last one ", found.culprit.reason)
    assert found.cause.kind == "hang"
    log = folder.rank_log(1, 2).read_text()
    assert re.search(r'Timeout \(0:00:04\)!(.|\n)*hanging\.py", line \d+ in hold', log)


def test_a_rank_that_is_stopped_from_outside_is_named_by_its_peers(run):
    """Rank 0, which is the one that judges if it lives."""
    folder = run("nothing")
    pid = rank_process(folder, 0)
    while len(metrics.steps(folder)) < 3:
        time.sleep(0.1)
    os.kill(pid, signal.SIGSTOP)
    attempt, found = end_of(folder, 240)
    assert attempt.state is RunState.FAILED
    assert (found.culprit.rank, found.culprit.host) == (0, socket.gethostname())
    assert "no sign of life for " in found.culprit.reason
    assert "waited in vain for rank 0 on " in folder.rank_log(1, 1).read_text()
    assert found.cause.kind == "hang"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_rank_that_was_stopped_for_a_while_goes_on(run):
    """As by a scheduler that suspends the job: all ranks stop, for longer than a hang may last."""
    folder = run("nothing", 1, "training.steps=1000")
    pids = [rank_process(folder, rank) for rank in range(2)]
    while len(metrics.steps(folder)) < 3:
        time.sleep(0.1)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(9)  # more than twice health.hang_seconds
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    attempt, _ = end_of(folder, 240)
    assert attempt.state is RunState.COMPLETED
    assert "no progress" not in folder.rank_log(1, 0).read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_slow_checkpoint_is_no_hang(run, rank):
    """It takes twice as long as a step may; the other rank waits in its next step meanwhile."""
    settings = ("training.steps=4", "checkpoint={every: 2, asynchronous: false}")
    folder = run("checkpoint", rank, *settings, seconds=8)
    attempt, found = end_of(folder, 240)
    assert attempt.state is RunState.COMPLETED, found.culprit
    assert metrics.steps(folder)[-1].step == 4


def test_a_checkpoint_that_never_ends_is_one(run):
    folder = run("checkpoint", 1, "checkpoint={every: 2}", limit=3)
    attempt, found = end_of(folder, 240)
    assert attempt.state is RunState.FAILED
    assert found.culprit.rank == 1
    assert re.search(r"after step \d, checkpoint, at .*hanging\.py:\d+ in slowly$", found.culprit.reason)


def test_a_rank_that_is_alone_ends_itself(run):
    folder = run("sleep", 0, ranks=1)
    attempt, found = end_of(folder, 240)
    assert (attempt.state, attempt.exit_code) == (RunState.FAILED, 1)
    assert (found.culprit.rank, found.culprit.host) == (0, socket.gethostname())
    assert "stood still for" in found.culprit.reason
    assert found.cause.kind == "hang"
    assert "in sleep" in folder.rank_log(1, 0).read_text()


def test_a_rank_that_is_alone_and_holds_the_interpreter_leaves_its_stack(run):
    """It has no peers who could end it, and what could by itself would also end one that was suspended."""
    folder = run("hold", 0, ranks=1)
    pid, log = rank_process(folder, 0), folder.rank_log(1, 0)
    deadline = time.monotonic() + 60
    stack = r"Timeout \(0:00:04\)!(.|\n)*line \d+ in hold"
    while not (log.exists() and re.search(stack, log.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    attempt, _ = end_of(folder, 240)
    assert attempt.state is RunState.FAILED


def test_a_rank_that_takes_twice_as_long_is_told_with_numbers(run):
    """All ranks sleep in their forwards, one of them twice as long."""
    folder = run("slow", 2, "training.steps=40", ranks=3, limit=60, seconds=0.2)
    attempt, _ = end_of(folder, 240)
    assert attempt.state is RunState.COMPLETED
    told = json.loads(hpcdl("status", folder.path, "--json"))
    (slow,) = told["stragglers"]
    assert (slow["host"], slow["ranks"]) == (socket.gethostname(), [2])
    assert 1.5 < slow["times"] < 2.5
    assert slow["steps"] >= 30
    assert slow["seconds"] > 0.4 > slow["others"] > 0.2
    assert f"slow: rank 2 on {socket.gethostname()}: {slow['times']:.2f} times as long as others" in hpcdl(
        "status", folder.path
    )
    (host,) = json.loads(hpcdl("slow-nodes", "--runs", folder.path.parent, "--json"))
    assert (host["host"], host["runs"], host["slow"]) == (socket.gethostname(), 1, 1)
    assert host["worst"] == host["times"] == slow["times"]
    assert host["worst_run"] == folder.path.name
    assert folder.path.name in hpcdl("slow-nodes", "--runs", folder.path.parent)


def test_never_means_never(run):
    """The rank goes on after three times as long as would else have been too much."""
    folder = run("sleep", 1, "training.steps=5", limit=0, seconds=6)
    attempt, _ = end_of(folder, 240)
    assert attempt.state is RunState.COMPLETED
    heartbeat = read_heartbeat(folder.heartbeat(1, 1))
    assert heartbeat.step > 2
    assert heartbeat.patience is None


def test_status_tells_rank_host_place_and_what_to_do(run):
    folder = run("sleep")
    end_of(folder, 240)
    screen = hpcdl("status", folder.path)
    told = json.loads(hpcdl("status", folder.path, "--json"))
    assert told["first_failure"]["rank"] == 1
    assert told["first_failure"]["host"] == socket.gethostname()
    assert told["cause"]["kind"] == "hang"
    assert told["cause"]["advice"] == KINDS["hang"].advice
    assert f"first failure: rank 1 on {socket.gethostname()}: HangError: stood still for " in screen
    assert re.search(r"hanging\.py:\d+ in sleep", screen)
    assert KINDS["hang"].advice in screen
