"""Runs that really fail on this machine: who is named, why, and what to do."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from disks import small_disk

from hpcdl.runs.failures.causes import KINDS
from hpcdl.runs.failures.diagnosis import diagnose
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.states import following
from hpcdl.workflow.studies import preparing, studying

TESTS = Path(__file__).parent
OWN = """
name: faulty
model: {{entry: "faulty:program", arguments: {{fault: {fault}, rank: {rank}}}}}
training: {{global_batch: 8, steps: 4, precision: fp32, optimizer: {{lr: 1.0e-2}}}}
parallelism: {{data: 2, microbatch: 4}}
resources: {{gpus: 2, walltime: "00:05:00"}}
"""


@pytest.fixture
def own(tmp_path):
    """An experiment whose model does something wrong."""

    def write(fault, rank):
        shutil.copy(TESTS / "faulty.py", tmp_path)
        path = tmp_path / "own.yaml"
        path.write_text(OWN.format(fault=fault, rank=rank))
        return path

    return write


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    return Path(shutil.copy(TESTS / "tiny.yaml", tmp_path))


def prepared(spec, *settings):
    study = studying.study(studying.Request(spec, settings=settings))
    return preparing.prepare(study, spec.parent / "runs")[0]


def end_of(folder, seconds=200):
    """The attempt and what is known of its failure, when it is over."""
    deadline = time.monotonic() + seconds
    while not (attempt := following.refresh([folder])[0]).state.over:
        assert time.monotonic() < deadline, f"{folder.path.name} is still {attempt.state.value}"
        time.sleep(0.1)
    return attempt, diagnose(folder, attempt)


def failed(spec, *settings):
    folder = prepared(spec, *settings)
    submitting.submit([folder])
    return end_of(folder)


def test_exit_7_of_one_rank_is_its_exit_code_and_nothing_is_made_up(own):
    attempt, found = failed(own("exit 7", 1))
    assert (found.culprit.rank, found.culprit.exit_code, attempt.exit_code) == (1, 7, 7)
    assert found.cause is None


def test_a_killed_rank_is_named_with_what_kills_ranks(own):
    attempt, found = failed(own("kill", 1))
    assert (found.culprit.rank, attempt.exit_code) == (1, 128 + signal.SIGKILL)
    assert found.cause.kind == "killed"
    assert "ask for more memory a node" in found.cause.advice


def test_a_crash_in_native_code_leaves_its_stack(own):
    attempt, found = failed(own("crash", 1))
    assert (found.culprit.rank, attempt.exit_code) == (1, 128 + signal.SIGSEGV)
    assert found.cause.kind == "crash"
    assert any("string_at" in line for line in found.endings[0].lines)


def test_a_missing_package_is_shown_once_for_all_ranks(own):
    spec = own("import", "every")
    command = [sys.executable, "-m", "hpcdl", "submit", spec, "--follow"]
    environment = os.environ | {"HPCDL_RUNS": str(spec.parent / "runs")}
    answer = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert answer.returncode == 5, answer.stderr
    line = "ModuleNotFoundError: No module named 'hpcdl_never_had_this'"
    assert answer.stderr.count(f"  {line}\n") == 1
    assert f"cause: {KINDS['missing package'].words}: {line}\n" in answer.stderr
    assert f"  {KINDS['missing package'].advice}\n" in answer.stderr
    status = [sys.executable, "-m", "hpcdl", "status", "last"]
    screen = subprocess.run(status, env=environment, capture_output=True, text=True, check=True).stdout
    assert f"cause: {KINDS['missing package'].words}: {line}\n" in screen
    record = json.loads(
        subprocess.run([*status, "--json"], env=environment, capture_output=True, check=True).stdout
    )
    assert record["cause"]["kind"] == "missing package"
    assert record["cause"]["advice"] == KINDS["missing package"].advice
    assert record["attempts"][0]["exit_code"] == 1
    assert record["endings"][0]["last_line"] == line
    assert record["first_failure"]["rank"] in record["endings"][0]["ranks"]


def test_a_loss_that_becomes_nan_is_told_with_its_step(tiny):
    _, found = failed(tiny, "training.optimizer.lr=1e30", "training.optimizer.clip=0")
    assert found.cause.kind == "not finite"
    assert "became " in found.cause.words
    assert "in step" in found.cause.words
    assert "lower training.optimizer.lr" in found.cause.advice


PORT = """
import socket
taken = socket.socket()
taken.bind(("127.0.0.1", 0))
socket.socket().bind(taken.getsockname())
"""


def test_a_program_of_ones_own_that_finds_its_port_taken(tmp_path):
    """Of a program in a rank's place nothing but its log and its exit code is known."""
    (tmp_path / "port.py").write_text(PORT)
    spec = tmp_path / "own.yaml"
    spec.write_text(
        f'name: port\ncommand: [{sys.executable}, port.py]\nresources: {{gpus: 2, walltime: "00:05:00"}}\n'
    )
    _, found = failed(spec)
    assert found.cause.kind == "port in use"
    assert found.endings[0].last_line == "OSError: [Errno 98] Address already in use"
    assert "port 0" in found.cause.advice


def test_a_full_disk_is_told_with_its_line(tiny):
    """The metrics of two ranks lie on a disk of one page."""
    folder = prepared(tiny, "training.steps=100000")
    with small_disk(folder.metrics, "4k"):
        submitting.submit([folder])
        attempt, found = end_of(folder)
    assert attempt.exit_code == 1
    assert found.cause.kind == "disk full"
    assert "OSError: [Errno 28] No space left on device" in found.cause.words
    assert "make room" in found.cause.advice


def rank_process(folder, rank):
    """The process of a rank, as soon as there is one."""
    while True:
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if (
                str(folder.path).encode() in words
                and b"hpcdl.engine" in words
                and b"RANK=%d" % rank in variables
            ):
                return int(entry.name)


@pytest.mark.slow
def test_a_rank_that_never_comes_is_named(tiny):
    """It is stopped as it starts, as by a file system that hangs; only SIGKILL ends it."""
    folder = prepared(tiny)
    resolved = json.loads(folder.resolved.read_text())
    resolved["rendezvous"]["timeout_seconds"] = 8
    folder.resolved.write_text(json.dumps(resolved))
    submitting.submit([folder])
    os.kill(rank_process(folder, 1), signal.SIGSTOP)
    _, found = end_of(folder)
    assert found.culprit.rank == 0  # who said so
    assert found.cause.kind == "rank never came"
    assert found.cause.words.endswith("1 of 2 ranks never came within 8 s: 1")
    assert "look at the logs of the ranks that are missing" in found.cause.advice
