"""An engine of one's own on this machine: a torch program under DistributedDataParallel, from submit to collect."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from quick import first_of

from hpcdl.run_folder import RunFolder

EXAMPLE = Path(__file__).parents[1] / "examples" / "own-engine.yaml"


@pytest.fixture
def hpcdl(tmp_path):
    """Run ``hpcdl ARGS`` as a process of its own; ``python`` is the interpreter of the tests."""
    environment = os.environ | {"HPCDL_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment.pop("HPCDL_SITE", None)

    def call(*args):
        command = [sys.executable, "-m", "hpcdl", *map(str, args)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=200, check=False
        )

    return call


def submitted(hpcdl, spec, *args):
    answer = hpcdl("submit", spec, "--json", *args)
    assert answer.returncode == 0, answer.stderr
    return RunFolder(Path(json.loads(answer.stdout)["path"]))


def status(hpcdl):
    return json.loads(hpcdl("status", "last", "--json").stdout)


def losses(folder, attempt=1):
    text = folder.rank_log(attempt, 0).read_text()
    return {int(step): float(loss) for step, loss in re.findall(r"step (\d+)  loss (\S+)", text)}


def wait_until(condition, what, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)


def own(tmp_path, program, gpus=2):
    """An experiment file beside a program in Python."""
    (tmp_path / "program.py").write_text(program)
    spec = tmp_path / "own.yaml"
    spec.write_text(f"command: [python, program.py]\nresources: {{gpus: {gpus}, walltime: '00:05:00'}}\n")
    return spec


@pytest.mark.parametrize("gpus", first_of(4, 2))
def test_the_example_learns_and_everything_told_of_it_is_true(hpcdl, tmp_path, gpus):
    folder = submitted(hpcdl, EXAMPLE, "--wait", "--gpus", gpus)
    told = status(hpcdl)
    assert told["state"] == "completed", folder.rank_log(1, 0).read_text()
    assert losses(folder)[200] < 0.5 * losses(folder)[1]
    assert (told["step"], told["steps"], told["last_loss"], told["decomposition"]) == (None, None, None, None)
    assert told["command"] == ["python", "own_engine.py", "--steps", "200"]
    assert told["attempts"][0]["exit_code"] == 0

    (row,) = json.loads(hpcdl("list", "--json").stdout)
    assert (row["state"], row["steps"]) == ("completed", None)
    assert "python own_engine.py --steps 200" in hpcdl("status", "last").stdout
    assert "completed" in hpcdl("list").stdout
    assert f"rank {gpus - 1} | step 200" in hpcdl("logs", "last", "--follow").stdout
    packed = tmp_path / "r.tar.gz"
    assert hpcdl("collect", "last", "--output", packed).returncode == 0
    with tarfile.open(packed) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"experiment.yaml", "resolved.json", "job.sh", "logs/attempt-1/rank-00001.log"} <= names
    assert not {name for name in names if name.startswith("checkpoints")}
    exported = hpcdl("export", "last", tmp_path / "weights")
    assert (exported.returncode, "ran a command of yours" in exported.stderr) == (2, True)


ENDLESS = """
import os, time
from torch.distributed import all_reduce, init_process_group
import torch
init_process_group("gloo")
open(f"pid-{os.environ['RANK']}", "w").write(str(os.getpid()))
while True:
    all_reduce(torch.ones(1))
"""


def programs(tmp_path, count):
    wait_until(lambda: len([p for p in tmp_path.glob("pid-*") if p.read_text()]) == count, "the start")
    return {int(file.name[4:]): int(file.read_text()) for file in tmp_path.glob("pid-*")}


def test_a_rank_that_exits_7_is_the_culprit_and_the_others_are_ended(hpcdl, tmp_path):
    program = ENDLESS + "    if os.environ['RANK'] == '1': time.sleep(1); os._exit(7)\n"
    folder = submitted(hpcdl, own(tmp_path, program, gpus=4))
    wait_until(folder.job_exit(1).exists, "the end")
    told = status(hpcdl)
    assert (told["state"], told["attempts"][0]["exit_code"]) == ("failed", 7)
    first = told["first_failure"]
    assert (first["rank"], first["exit_code"], first["reason"]) == (1, 7, "exit code 7")
    assert json.loads(folder.job_exit(1).read_text())["exit_code"] != 0
    assert not [pid for pid in programs(tmp_path, 4).values() if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_a_program_that_is_killed_is_the_culprit_not_those_that_lost_it(hpcdl, tmp_path):
    folder = submitted(hpcdl, own(tmp_path, ENDLESS, gpus=3))
    pids = programs(tmp_path, 3)
    os.kill(pids[2], signal.SIGKILL)
    wait_until(folder.job_exit(1).exists, "the end")
    first = status(hpcdl)["first_failure"]
    assert (first["rank"], first["signal"], first["reason"]) == (2, signal.SIGKILL, "killed by SIGKILL")
    assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]


def test_cancel_ends_every_program(hpcdl, tmp_path):
    submitted(hpcdl, own(tmp_path, ENDLESS))
    pids = programs(tmp_path, 2)
    assert hpcdl("cancel", "last").returncode == 0
    wait_until(lambda: status(hpcdl)["state"] == "cancelled", "the end")
    assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_resume_starts_it_again_as_the_next_attempt_and_it_goes_on_by_itself(hpcdl, tmp_path):
    long = ("--set", 'command=[python, own_engine.py, --steps, "1000000"]')
    folder = submitted(hpcdl, EXAMPLE, "--gpus", "2", *long)
    saved = folder.checkpoints / "own.pt"
    wait_until(saved.exists, "the first checkpoint")
    hpcdl("cancel", "last")
    wait_until(lambda: status(hpcdl)["state"] == "cancelled", "the end")
    reached = torch.load(saved)["step"]
    assert hpcdl("resume", "last").returncode == 0
    wait_until(lambda: folder.rank_log(2, 0).exists() and losses(folder, 2), "a step of the next attempt")
    hpcdl("cancel", "last")
    wait_until(lambda: status(hpcdl)["state"] == "cancelled", "the end")
    assert min(losses(folder, 2)) == reached + 1
    assert len(status(hpcdl)["attempts"]) == 2
