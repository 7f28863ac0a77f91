"""A rank that stands still on a real Slurm: srun ends the others, and status says which rank of which node."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from hpcdl.run_folder import RunFolder
from hpcdl.runs.failures.causes import KINDS
from hpcdl.telemetry import read_heartbeat

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TESTS = Path(__file__).parents[1]
SPEC = """
name: hanging
model: {{entry: "hanging:program", arguments: {{fault: {fault}, rank: 2}}}}
training: {{global_batch: 16, steps: 100000, precision: fp32, optimizer: {{lr: 1.0e-2}}}}
parallelism: {{data: 4, microbatch: 4}}
resources: {{gpus: 4, nodes: 2, walltime: "00:10:00"}}
chain: {{attempts: 1}}
health: {{hang_seconds: 6, preflight: "off"}}
"""


@pytest.mark.parametrize(
    ("fault", "said"),
    [("sleep", r"stood still for \d+ s after step"), ("hold", r"no sign of life for \d+ s")],
)
def test_the_job_is_ended_and_the_rank_that_stands_still_is_named_with_its_node(hpcdl, tmp_path, fault, said):
    shutil.copy(TESTS / "hanging.py", tmp_path)
    spec = tmp_path / "own.yaml"
    spec.write_text(SPEC.format(fault=fault))
    answer = hpcdl("submit", spec, "--wait", "--json")
    assert answer.returncode == 5, answer.stderr
    folder = RunFolder(next((tmp_path / "runs").glob("hanging-*")))
    told = json.loads(hpcdl("status", folder.path, "--json").stdout)
    assert told["state"] == "failed"
    first, beat = told["first_failure"], read_heartbeat(folder.heartbeat(1, 2))
    assert (first["rank"], first["host"]) == (2, beat.host)
    assert beat.host != read_heartbeat(folder.heartbeat(1, 0)).host
    assert re.search(said, first["reason"])
    assert told["cause"]["kind"] == "hang"
    assert KINDS["hang"].advice in answer.stderr
    log = folder.rank_log(1, 2).read_text()
    assert re.search(rf'hanging\.py", line \d+ in {fault}', log)
    assert all("no progress: stood still" in folder.rank_log(1, rank).read_text() for rank in (0, 1, 3))
