"""Placement on a real Slurm: where ranks run, what they see, and a submission from inside another job."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from pathlib import Path

import pytest
from cluster.slurm import SlurmCluster, until
from schedulers.sample import interpreter, job, prepared, site

from hpcdl import shell
from hpcdl.schedulers import slurm
from hpcdl.schedulers.script import render

pytestmark = pytest.mark.slurm

NODE = {
    "cores": 8,
    "device_cores": ["6-7", "4-5", "2-3", "0-1"],
    "device_nics": [0, 0, 1, 1],
    "links": {"nics": 2, "nic_names": ["mlx5_0", "mlx5_1"]},
}


def log(tmp_path, machine, body, **asked):
    """What the ranks of a job print, line by line."""
    folder = prepared(tmp_path / "run")
    folder.script.write_text(render(job(folder.path, machine, python=interpreter(tmp_path, body), **asked)))
    slurm.submitted(shell.run(slurm.submit(folder.script), cwd=folder.path))
    assert until(folder.job_exit(1).exists, 60)
    text = folder.job_log(1).read_text()
    assert json.loads(folder.job_exit(1).read_text()) == {"exit_code": 0}, text
    return sorted(text.splitlines())


@pytest.fixture
def binding_cluster(slurm_cluster, tmp_path, monkeypatch):
    """One node that does bind: task/affinity, on the cores of this machine."""
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        SlurmCluster(Path(folder), nodes=1, task_plugin="affinity") as cluster,
    ):
        monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
        yield cluster


def test_ranks_run_on_the_cores_near_their_devices(binding_cluster, tmp_path):
    """Two devices with a core each; the second comes first, so the cores do too."""
    if not {0, 1} <= os.sched_getaffinity(0):
        pytest.skip("NO BINDING TESTED: this machine has one core")
    node = {"devices": 2, "cores": 8, "device_cores": ["0", "1"]}
    machine = site(launch={"cpu_bind": "near-device", "device_order": [1, 0]}, nodes={"gpu": node})
    cores = "sed -n s/Cpus_allowed_list://p /proc/self/status"
    seen = log(tmp_path, machine, f"echo $CUDA_VISIBLE_DEVICES $({cores}) $OMP_NUM_THREADS")
    assert seen == ["0: 1,0 1 1", "1: 1,0 0 1"]


def test_masks_of_many_ranks_are_accepted_where_nothing_binds(slurm_cluster, tmp_path):
    machine = site(launch={"cpu_bind": "near-device", "device_order": [3, 2, 1, 0]}, nodes={"gpu": NODE})
    seen = log(tmp_path, machine, "echo $SLURM_LOCALID $CUDA_VISIBLE_DEVICES", nodes=2, ranks_per_node=4)
    assert [line for line in seen if "3,2,1,0" in line] == [
        f"{rank}: {rank % 4} 3,2,1,0" for rank in range(8)
    ]


def test_a_mask_that_is_none_is_refused_by_srun(slurm_cluster, tmp_path):
    """So that a mask was accepted means something."""
    with pytest.raises(AssertionError, match="cpu-bind"):
        log(tmp_path, site(launch={"cpu_bind": "mask_cpu:0xzz"}), "true")


def test_each_rank_sees_its_own_interface_and_device_on_every_node(slurm_cluster, tmp_path):
    machine = site(
        launch={"nic_bind": "ucx", "gpu_visibility": "one_per_task", "device_order": [3, 2, 1, 0]},
        scheduler={"forbidden": ["--gpus-per-task"]},
        nodes={"gpu": NODE},
    )
    seen = log(tmp_path, machine, "echo $CUDA_VISIBLE_DEVICES $UCX_NET_DEVICES", nodes=2, ranks_per_node=4)
    expected = ["3 mlx5_1:1", "2 mlx5_1:1", "1 mlx5_0:1", "0 mlx5_0:1"]
    assert seen == [f"{rank}: {expected[rank % 4]}" for rank in range(8)]


def test_srun_gives_each_task_its_device_in_the_sites_order(slurm_cluster, tmp_path):
    machine = site(launch={"gpu_visibility": "one_per_task", "device_order": [3, 2, 1, 0]})
    seen = log(tmp_path, machine, "echo $CUDA_VISIBLE_DEVICES", ranks_per_node=4)
    assert seen == [f"{rank}: {3 - rank}" for rank in range(4)]


def test_devices_asked_for_by_the_task_are_all_visible_where_the_site_wants_it(slurm_cluster, tmp_path):
    machine = site(scheduler={"gpu_request": "gpus-per-task"})
    seen = log(tmp_path, machine, "echo $CUDA_VISIBLE_DEVICES", ranks_per_node=4)
    assert seen == [f"{rank}: 0,1,2,3" for rank in range(4)]


SUBMIT = """
import os, sys
from pathlib import Path
from hpcdl import shell
from hpcdl.schedulers import slurm
script = Path(sys.argv[1])
os.environ["RANK"] = "5"
if sys.argv[2] == "outside":
    print(slurm.submitted(shell.run(slurm.submit(script), cwd=script.parent)))
else:
    import subprocess
    subprocess.run(slurm.submit(script), cwd=script.parent, check=True)
"""

SEEN = 'echo "$SLURM_NTASKS $SLURM_JOB_NUM_NODES ${RANK-none} ${CUDA_VISIBLE_DEVICES}"'


def from_inside(cluster, tmp_path, how):
    """The log of a job of two ranks that a job of 2 × 4 ranks submitted."""
    folder = prepared(tmp_path / "inner")
    work = job(folder.path, site(), python=interpreter(tmp_path, SEEN))
    folder.script.write_text(render(work))
    (tmp_path / "submit.py").write_text(SUBMIT)
    command = [sys.executable, str(tmp_path / "submit.py"), str(folder.script), how]
    outer = cluster.run(
        "sbatch", "--wait", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4",
        f"--output={tmp_path}/outer.log", f"--export=ALL,PYTHONPATH={Path(__file__).parents[2]}",
        f"--wrap={shlex.join(command)}",
    )  # fmt: skip
    assert outer.returncode == 0, (tmp_path / "outer.log").read_text()
    assert until(folder.job_exit(1).exists, 60)
    return folder.job_log(1).read_text().splitlines()


def test_a_submission_from_inside_a_job_of_eight_tasks_is_not_reshaped(slurm_cluster, tmp_path):
    assert sorted(from_inside(slurm_cluster, tmp_path, "outside")) == ["0: 2 1 none 0,1", "1: 2 1 none 0,1"]


@pytest.mark.slow
def test_without_care_it_is(slurm_cluster, tmp_path):
    """What the test above would see if nothing were taken out: the rank of whoever submitted."""
    seen = from_inside(slurm_cluster, tmp_path, "inside")
    assert any(" 5 " in line for line in seen)


def test_a_secret_of_the_shell_reaches_the_ranks_and_no_file(slurm_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_5ecre7")
    seen = log(tmp_path, site(), '[ "$HF_TOKEN" = hf_5ecre7 ] && echo it came')
    assert seen == ["0: it came", "1: it came"]
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 2
    assert not any("5ecre7" in path.read_text() for path in files)
