"""Many runs as one job: each element finds its own folder, log and record by its index."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from schedulers.sample import HOSTILE_NAME, interpreter, job, prepared, site

from hpcdl.errors import SchedulerError
from hpcdl.run_folder import RunFolder
from hpcdl.schedulers.base import Array, Job
from hpcdl.schedulers.directives import job_log, job_name
from hpcdl.schedulers.script import render

FORKING = site("slurm", "fork", nodes={"gpu": {"device": {"kind": "cpu"}}})


def array(where: Path, size: int = 3, **asked) -> Job:
    """A job of ``size`` elements whose folders lie in ``where``."""
    folders = tuple(prepared(where / f"seeds-ab12-{index}").path for index in range(size))
    work = job(folders[0], asked.pop("machine", FORKING), run="seeds-ab12-0", **asked)
    return replace(work, array=Array(folders))


def run_element(script: str, folder: Path, index: int | None) -> subprocess.CompletedProcess[bytes]:
    """Run a script as the element of this index, inside the folder it was submitted from."""
    variable = {} if index is None else {"SLURM_ARRAY_TASK_ID": str(index)}
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, env={"PATH": os.environ["PATH"], **variable},
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip


def test_each_element_runs_in_its_own_folder_whatever_the_folders_above_are_called(tmp_path):
    where = tmp_path / HOSTILE_NAME
    body = f'printf "%s\\n" "${{@: -1}}" "$PWD" "$OUTPUT" >"{tmp_path}/seen-${{PWD##*-}}"'
    first = where / "seeds-ab12-0"
    work = array(
        where, python=interpreter(tmp_path, body), ranks_per_node=1, environment={"OUTPUT": f"{first}/o"}
    )
    for index in range(3):
        own = where / f"seeds-ab12-{index}"
        assert run_element(render(work), first, index).returncode == 0
        assert (tmp_path / f"seen-{index}").read_text() == f"{own}\n{own}\n{own}/o\n"
        assert json.loads(RunFolder(own).job_exit(1).read_text()) == {"exit_code": 0}
    assert not list(tmp_path.rglob("pwned*"))


def test_script_without_its_index_ends_before_anything_is_touched(tmp_path):
    work = array(tmp_path, python=interpreter(tmp_path, f"touch {tmp_path}/ran"))
    assert run_element(render(work), work.folder, None).returncode != 0
    assert not (tmp_path / "ran").exists()


def test_text_that_only_begins_like_the_folder_is_left_alone(tmp_path):
    work = array(tmp_path, environment={"OTHER": f"{tmp_path}/seeds-ab12-00"})
    assert f"export OTHER={tmp_path}/seeds-ab12-00\n" in render(work)


def test_each_element_logs_to_its_own_folder(tmp_path):
    work = array(tmp_path)
    path = job_log(work, "%a")
    assert path == "../seeds-ab12-%a/logs/attempt-1/job.log"
    for index, folder in enumerate(work.array.folders):
        reached = Path(os.path.normpath(work.folder / path.replace("%a", str(index))))
        assert reached == RunFolder(folder).job_log(1)


def test_array_is_named_by_what_its_elements_share(tmp_path):
    assert job_name(array(tmp_path)) == "seeds-ab12"


def test_log_of_an_array_whose_folder_no_directive_can_hold_is_refused(tmp_path):
    work = replace(array(tmp_path), folder=tmp_path / "a b#-0")
    with pytest.raises(SchedulerError, match="cannot be a job name"):
        job_log(work, "%a")


def test_scheduler_without_arrays_renders_none(tmp_path):
    machine = site(
        "local", "fork", scheduler={"gpu_request": "none"}, nodes={"gpu": {"device": {"kind": "cpu"}}}
    )
    with pytest.raises(SchedulerError, match="local has no job arrays"):
        render(array(tmp_path, machine=machine))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize(
    ("kind", "launcher"), [("slurm", "srun"), ("pbs", "mpiexec-pals"), ("pbs", "pbsdsh"), ("lsf", "jsrun")]
)
def test_script_of_an_array_passes_shellcheck(tmp_path, kind, launcher):
    machine = site(kind, launcher, scheduler={"place": "scatter"})
    script = render(array(tmp_path / HOSTILE_NAME, machine=machine))
    checked = subprocess.run(
        ["shellcheck", "--severity=info", "--exclude=SC1003,SC1091,SC1112,SC2016,SC2317", "-"],
        input=script.encode(), capture_output=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout.decode()
