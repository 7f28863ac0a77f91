"""An engine of one's own through a real Slurm: two nodes of two ranks, one process a rank under srun."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import yaml
from schedulers.hostile import texts
from schedulers.sample import HOSTILE

from hpcdl.run_folder import RunFolder
from hpcdl.telemetry import read_exits

pytestmark = pytest.mark.slurm

EXAMPLE = Path(__file__).parents[2] / "examples" / "own-engine.yaml"
SPREAD = ("--gpus", "4", "--nodes", "2")
TELL = """
import json, os, sys
json.dump([sys.argv[1:], dict(os.environ)], open(f"told-{os.environ['RANK']}", "w"))
sys.exit(7 * (os.environ["RANK"] == os.environ.get("FAILING")))
"""


@pytest.fixture
def hpcdl(slurm_cluster, tmp_path):
    """Run ``hpcdl ARGS`` as a process of its own, with this cluster as the default site."""
    environment = os.environ | slurm_cluster.env
    environment |= {"HPCDL_RUNS": str(tmp_path / "runs"), "HPCDL_SITE": str(slurm_cluster.site)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def call(*args):
        command = [sys.executable, "-m", "hpcdl", *map(str, args)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=250, check=False
        )

    return call


def run(hpcdl, spec, *args):
    """Submit and wait for the end; the run folder and what is told of the run."""
    answer = hpcdl("submit", spec, "--json", *args)
    assert answer.returncode == 0, answer.stderr
    folder = RunFolder(Path(json.loads(answer.stdout)["path"]))
    end = time.monotonic() + 200
    while (told := json.loads(hpcdl("status", folder.path, "--json").stdout))["state"] in (
        "queued",
        "running",
    ):
        assert time.monotonic() < end, told
        time.sleep(0.5)
    return folder, told


def own(tmp_path, arguments=(), environment=None):
    """An experiment whose program writes down what it was told."""
    (tmp_path / "tell.py").write_text(TELL)
    content = {
        "command": ["python", "tell.py", *arguments],
        "resources": {"gpus": 4, "nodes": 2, "walltime": "00:05:00"},
        "environment": environment or {},
    }
    spec = tmp_path / "own.yaml"
    spec.write_text(yaml.safe_dump(content))
    return spec


@pytest.mark.slow
def test_the_example_trains_over_two_nodes(hpcdl, tmp_path):
    folder, told = run(hpcdl, EXAMPLE, *SPREAD)
    logs = [folder.rank_log(1, rank).read_text() for rank in range(4)]
    assert told["state"] == "completed", logs
    assert all("step 200" in log for log in logs)
    records = read_exits(folder.exits(1))
    assert [record.exit_code for record in records] == [0] * 4
    assert len({record.host for record in records}) == 2
    assert "rank 3 | step 200" in hpcdl("logs", "last", "--follow").stdout
    packed = tmp_path / "run.tar.gz"
    assert hpcdl("collect", "last", "--output", packed).returncode == 0
    with tarfile.open(packed) as archive:
        assert any(name.endswith("logs/attempt-1/rank-00003.log") for name in archive.getnames())


def test_ranks_are_told_their_place_and_hostile_words_arrive_as_they_were(hpcdl, tmp_path):
    _, told = run(hpcdl, own(tmp_path, [*HOSTILE.values()], HOSTILE))
    assert told["state"] == "completed"
    heard = [json.loads((tmp_path / f"told-{rank}").read_text()) for rank in range(4)]
    assert [variables["LOCAL_RANK"] for _, variables in heard] == ["0", "1", "0", "1"]
    assert [variables["GROUP_RANK"] for _, variables in heard] == ["0", "0", "1", "1"]
    assert len({(variables["MASTER_ADDR"], variables["MASTER_PORT"]) for _, variables in heard}) == 1
    for arguments, variables in heard:
        assert arguments == [*HOSTILE.values()]
        assert {name: variables[name] for name in HOSTILE} == HOSTILE
    assert not list(tmp_path.rglob("pwned*"))


def test_thousands_of_generated_arguments_and_hostile_names_arrive_as_they_were(hpcdl, tmp_path):
    arguments = list(texts(2000, seed=7))
    names = [text for text in texts(40, seed=8) if text.strip()]
    spec = own(tmp_path)
    content = yaml.safe_load(spec.read_text()) | {"name": "".join(names)}
    content["command"] += [*arguments, *names]
    # As JSON, which is YAML too and quotes all text: PyYAML leaves 1e999 bare, which YAML 1.2 calls a number.
    spec.write_text(json.dumps(content))
    folder, told = run(hpcdl, spec)
    assert told["state"] == "completed", told
    assert json.loads(folder.resolved.read_text())["experiment"]["name"] == "".join(names)
    for rank in range(4):
        seen, _ = json.loads((tmp_path / f"told-{rank}").read_text())
        assert seen == [*arguments, *names]
    assert not list(tmp_path.rglob("pwned"))


def test_a_rank_that_exits_7_is_named_with_its_code_and_a_resumed_run_is_attempt_2(hpcdl, tmp_path):
    """srun ends the other ranks and answers 143 or 137, which nobody asked for."""
    folder, told = run(hpcdl, own(tmp_path, environment={"FAILING": "2"}))
    assert (told["state"], told["attempts"][0]["exit_code"]) == ("failed", 7)
    assert (told["first_failure"]["rank"], told["first_failure"]["reason"]) == (2, "exit code 7")
    again = hpcdl("resume", folder.path, "--follow")
    assert again.returncode == 5
    assert "rank 2 on" in again.stderr
    assert json.loads((tmp_path / "told-2").read_text())[1]["HPCDL_ATTEMPT"] == "2"
    assert len(json.loads(hpcdl("status", folder.path, "--json").stdout)["attempts"]) == 2
