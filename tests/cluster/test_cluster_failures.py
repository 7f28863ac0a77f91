"""Runs that really fail on a real Slurm: srun tears the other ranks down, and who began it is still named."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from hpcdl.run_folder import RunFolder
from hpcdl.runs.failures.causes import KINDS

pytestmark = pytest.mark.slurm

TESTS = Path(__file__).parents[1]
OWN = """
name: faulty
model: {{entry: "faulty:program", arguments: {{fault: {fault}, rank: {rank}}}}}
training: {{global_batch: 8, steps: 4, precision: fp32, optimizer: {{lr: 1.0e-2}}}}
parallelism: {{data: 4, microbatch: 2}}
resources: {{gpus: 4, nodes: 2, walltime: "00:05:00"}}
"""


@pytest.fixture
def failed(hpcdl, tmp_path):
    """Run a model that does something wrong on a rank of two nodes; returns its folder and its status."""

    def run(fault, rank):
        shutil.copy(TESTS / "faulty.py", tmp_path)
        spec = tmp_path / "own.yaml"
        spec.write_text(OWN.format(fault=fault, rank=rank))
        answer = hpcdl("submit", spec, "--wait", "--json")
        assert answer.returncode == 5, answer.stderr
        (path,) = (tmp_path / "runs").glob("faulty-*")
        folder = RunFolder(path)
        return folder, json.loads(hpcdl("status", folder.path, "--json").stdout), answer.stderr

    return run


def test_exit_7_of_rank_3_is_told_and_not_sruns_143(failed):
    _, told, screen = failed("exit 7", 3)
    assert (told["first_failure"]["rank"], told["first_failure"]["exit_code"]) == (3, 7)
    assert told["attempts"][0]["exit_code"] == 7
    assert told["cause"] is None
    assert "cause:" not in screen


@pytest.mark.slow
def test_a_rank_killed_on_the_second_node_is_told_with_what_kills_ranks(failed):
    _, told, screen = failed("kill", 2)
    assert (told["first_failure"]["rank"], told["first_failure"]["signal"]) == (2, signal.SIGKILL)
    assert told["cause"]["kind"] == "killed"
    assert told["cause"]["advice"] == KINDS["killed"].advice
    assert f"  {KINDS['killed'].advice}\n" in screen


@pytest.mark.slow
def test_a_crash_in_native_code_is_told_by_the_stack_in_its_log(failed):
    folder, told, _ = failed("crash", 1)
    assert (told["first_failure"]["rank"], told["attempts"][0]["exit_code"]) == (1, 128 + signal.SIGSEGV)
    assert told["cause"]["kind"] == "crash"
    assert "string_at" in folder.rank_log(1, 1).read_text()


@pytest.mark.slow
def test_a_missing_package_is_told_once_for_the_ranks_that_missed_it(failed):
    _, told, screen = failed("import", "every")
    line = "ModuleNotFoundError: No module named 'hpcdl_never_had_this'"
    assert told["cause"] == {
        "kind": "missing package",
        "words": f"{KINDS['missing package'].words}: {line}",
        "advice": KINDS["missing package"].advice,
    }
    assert told["attempts"][0]["exit_code"] == 1
    assert told["endings"][0]["last_line"] == line
    assert told["first_failure"]["rank"] in told["endings"][0]["ranks"]
    assert screen.count(f"  {line}\n") == 1
