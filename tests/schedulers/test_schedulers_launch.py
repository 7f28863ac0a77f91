"""Launchers: which program starts the ranks, and which devices a rank sees."""

from __future__ import annotations

import subprocess
import sys

import pytest
from schedulers.sample import job, site

from hpcdl.errors import SiteError
from hpcdl.schedulers import environment, launch

RANK = [sys.executable, "-m", "hpcdl.engine", "/run"]
MPI_RANK = [sys.executable, "-m", "mpi4py", "-m", "hpcdl.engine", "/run"]


def command(tmp_path, machine, **asked):
    """The launch command, with the run folder's name made short."""
    words = launch.command(job(tmp_path, machine, **asked))
    return ["/run" if word == str(tmp_path) else word for word in words]


def test_srun_is_told_everything_again(tmp_path):
    """A step does not take all of it from its job, and what it takes differs by version."""
    machine = site(
        launch={"cpu_bind": "cores", "gpu_bind": "none", "arguments": ["--network=x y"], "mpi": "pmi2"}
    )
    assert command(tmp_path, machine, nodes=3, ranks_per_node=4) == [
        *("srun", "--kill-on-bad-exit=1", "--wait=60", "--label", "--nodes=3", "--ntasks=12"),
        "--ntasks-per-node=4",
        *(
            "--cpus-per-task=1",
            "--gpus-per-node=4",
            "--gpu-bind=none",
            "--cpu-bind=cores",
            "--network=x",
            "y",
        ),
        *RANK,
    ]


@pytest.mark.parametrize("transport", ["mpi", "mixed"])
def test_srun_starts_mpi_as_the_site_says(tmp_path, transport):
    words = command(tmp_path, site(launch={"mpi": "pmi2"}), transport=transport)
    assert "--mpi=pmi2" in words
    assert words[-len(MPI_RANK) :] == MPI_RANK


COMMANDS = {
    "mpiexec-pals": "mpiexec -n 6 --ppn 3 --depth 1 --cpu-bind depth",
    "mpiexec-hydra": "mpiexec -n 6 -ppn 3",
    "mpiexec-openmpi": "mpiexec -n 6 --map-by ppr:3:node:PE=1 -x HPCDL_ATTEMPT -x OMP_NUM_THREADS",
}


@pytest.mark.parametrize("launcher", COMMANDS)
def test_each_mpiexec_speaks_its_own_dialect(tmp_path, launcher):
    words = command(tmp_path, site("pbs", launcher), nodes=2, ranks_per_node=3)
    assert words == [*COMMANDS[launcher].split(), *RANK]


BOUND = {
    "mpiexec-pals": ("--cpu-bind", "numa"),
    "mpiexec-hydra": ("-bind-to", "numa"),
    "mpiexec-openmpi": ("--bind-to", "numa"),
}


@pytest.mark.parametrize("launcher", BOUND)
def test_binding_of_the_site_is_passed_on(tmp_path, launcher):
    words = command(tmp_path, site("pbs", launcher, launch={"cpu_bind": "numa", "arguments": ["-l"]}))
    option, value = BOUND[launcher]
    assert words[words.index(option) + 1] == value
    assert words[-5] == "-l"


@pytest.mark.parametrize("transport", ["mpi", "mixed"])
def test_fork_starts_ranks_without_a_launcher_unless_mpi_is_wanted(tmp_path, transport):
    machine = site("local", "fork")
    assert command(tmp_path, machine) == RANK
    assert launch.forks(job(tmp_path, machine))
    assert command(tmp_path, machine, transport=transport) == ["mpiexec", "-n", "2", *MPI_RANK]
    assert not launch.forks(job(tmp_path, machine, transport=transport))


def test_fork_over_several_nodes_is_refused(tmp_path):
    with pytest.raises(SiteError, match="fork starts ranks on one node, not on 2"):
        launch.command(job(tmp_path, site("slurm", "fork"), nodes=2))


@pytest.mark.parametrize(("request_kind", "devices"), [("none", "3,2"), ("gpus-per-node", "1,0")])
def test_device_order_is_set_for_each_rank(tmp_path, request_kind, devices):
    """Two devices of a node are numbered 0 and 1 where they were asked for, and as ever where all are there."""
    machine = site(launch={"device_order": [3, 2, 1, 0]}, scheduler={"gpu_request": request_kind})
    assert command(tmp_path, machine)[-6:] == ["env", f"CUDA_VISIBLE_DEVICES={devices}", *RANK]


@pytest.mark.parametrize(("kind", "variable"), [("gcd", "HIP_VISIBLE_DEVICES"), ("tile", "ZE_AFFINITY_MASK")])
def test_other_vendors_devices_have_other_variables(tmp_path, kind, variable):
    machine = site(launch={"device_order": [1, 0, 2, 3]}, nodes={"gpu": {"device": {"kind": kind}}})
    assert f"{variable}=1,0" in command(tmp_path, machine)


def test_cores_have_no_visibility(tmp_path):
    machine = site(
        "local", "fork", launch={"gpu_visibility": "one_per_task"}, nodes={"gpu": {"device": {"kind": "cpu"}}}
    )
    assert command(tmp_path, machine) == RANK


LOCAL_RANKS = {
    "srun": "SLURM_LOCALID",
    "mpiexec-pals": "PALS_LOCAL_RANKID",
    "mpiexec-hydra": "MPI_LOCALRANKID",
    "mpiexec-openmpi": "OMPI_COMM_WORLD_LOCAL_RANK",
    "fork": "LOCAL_RANK",
}


@pytest.mark.parametrize("launcher", LOCAL_RANKS)
def test_one_device_per_task_is_picked_by_the_local_rank(tmp_path, launcher):
    """The program that picks is run here as each launcher would run it on local rank 1."""
    machine = site(
        "pbs", launcher, scheduler={"gpu_request": "none"},
        launch={"gpu_visibility": "one_per_task", "device_order": [3, 2, 1, 0]},
    )  # fmt: skip
    words = command(tmp_path, machine)
    picker = words[words.index("bash") : -len(RANK)]
    seen = subprocess.run(
        [*picker, "bash", "-c", 'echo "$CUDA_VISIBLE_DEVICES" "$1"', "x", "a b"],
        env={LOCAL_RANKS[launcher]: "1", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert seen.stdout == "2 a b\n"


def test_srun_itself_gives_each_task_its_device_where_it_may(tmp_path):
    words = command(tmp_path, site(launch={"gpu_visibility": "one_per_task"}))
    assert "--gpus-per-task=1" in words
    assert "bash" not in words


@pytest.mark.parametrize("transport", ["mpi", "mixed"])
def test_mpi_ranks_that_share_cores_yield_to_each_other(tmp_path, transport):
    """MPICH polls: on a laptop with more ranks than cores each would burn its whole time slice."""
    machine = site("local", "fork", nodes={"gpu": {"cores": 2}})

    def exported(ranks, **asked):
        asked = job(tmp_path, machine, transport=transport, ranks_per_node=ranks, **asked)
        return dict(environment.exports(asked)).get("MPIR_CVAR_ENABLE_HEAVY_YIELD")

    assert exported(4) == "1"
    assert exported(4, environment={"MPIR_CVAR_ENABLE_HEAVY_YIELD": "0"}) == "0"
    assert exported(2) is None
