"""Every launcher has its own names for which rank a process is."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hpcdl.engine.ranks import discover, host_name, own_rank
from hpcdl.errors import EngineError

PACKAGE = Path(__file__).parents[2]
SLURM = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    ("environment", "rank", "local_rank"),
    [
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, 3, 1),
        (SLURM, 5, 1),
        ({"PALS_RANKID": "6", "PALS_LOCAL_RANKID": "2"}, 6, 2),
        ({"PMI_RANK": "7", "MPI_LOCALRANKID": "3", "PMI_SIZE": "8"}, 7, 3),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_SIZE": "8"}, 2, 0),
        ({"FLUX_TASK_RANK": "4", "FLUX_TASK_LOCAL_ID": "4", "FLUX_JOB_SIZE": "8"}, 4, 4),
        ({"JSM_NAMESPACE_RANK": "5", "JSM_NAMESPACE_LOCAL_RANK": "1", "JSM_NAMESPACE_SIZE": "8"}, 5, 1),
        ({"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "8", **SLURM}, 1, 0),
        ({**SLURM, "PMI_RANK": "5", "PMI_SIZE": "8"}, 5, 1),
    ],
    ids=[
        "explicit",
        "srun",
        "pals",
        "mpich",
        "openmpi",
        "flux",
        "jsrun",
        "explicit beats srun",
        "srun --mpi=pmi2",
    ],
)
def test_discover_reads_each_launchers_names(environment, rank, local_rank):
    place = discover(environment, 8)
    assert (place.rank, place.local_rank, place.world_size) == (rank, local_rank, 8)


def test_mpiexec_inside_a_slurm_job_is_believed_before_slurm():
    """Every rank inherits SLURM_PROCID=0 of the batch script; believing it, all would be rank 0."""
    script = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}
    assert discover({**script, "PMI_RANK": "3", "MPI_LOCALRANKID": "1", "PMI_SIZE": "8"}, 8).rank == 3


@pytest.mark.parametrize(
    "broker",
    [
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
        {"JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_LOCAL_RANK": "0", "JSM_NAMESPACE_SIZE": "2"},
        {"PALS_RANKID": "0", "PALS_LOCAL_RANKID": "0", "PMI_SIZE": "2"},
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"},
    ],
    ids=["mpiexec", "jsrun", "pals", "srun"],
)
def test_flux_is_believed_before_what_started_its_brokers(broker):
    """Every rank inherits the variables of the broker that it was started under."""
    flux = {"FLUX_TASK_RANK": "3", "FLUX_TASK_LOCAL_ID": "1", "FLUX_JOB_SIZE": "8"}
    assert discover({**broker, **flux}, 8).rank == 3


@pytest.mark.mpi
def test_own_rank_under_the_real_mpiexec(tmp_path):
    mpiexec = Path(sys.executable).with_name("mpiexec")
    # A file each, because mpiexec mixes what ranks print, even within lines.
    told = "import os; from hpcdl.engine.ranks import *; p = discover(os.environ, 3); open(f'{p.rank}-{p.local_rank}', 'w')"
    subprocess.run(
        [mpiexec, "-n", "3", sys.executable, "-W", "ignore", "-c", told],
        env=os.environ | {"PYTHONPATH": str(PACKAGE)}, cwd=tmp_path, check=True, timeout=60,
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "1-1", "2-2"]


@pytest.mark.parametrize("value", ["", "two", "-1", "1.0"])
def test_own_rank_that_is_no_number_is_refused_by_name(value):
    with pytest.raises(EngineError, match=f"RANK='{value}' is not a whole number"):
        own_rank({"RANK": value, "LOCAL_RANK": "0"})


def test_own_rank_without_a_local_rank_is_refused():
    """Guessing it would put two ranks on one device of a second node."""
    with pytest.raises(EngineError, match="LOCAL_RANK is not"):
        own_rank({"RANK": "4", **SLURM})


def test_discover_a_rank_beyond_the_world_is_refused():
    with pytest.raises(EngineError, match="RANK=8, but 8 ranks are numbered 0 to 7"):
        discover({"RANK": "8", "LOCAL_RANK": "0", "WORLD_SIZE": "8"}, 8)


def test_discover_one_rank_needs_no_launcher():
    assert discover({}, 1).rank == 0


def test_discover_without_a_launcher_says_what_was_looked_for():
    with pytest.raises(EngineError, match="SLURM_PROCID"):
        discover({}, 4)


def test_discover_another_number_of_ranks_names_both():
    """N singletons under a wrong --mpi= would train N separate models without a word."""
    with pytest.raises(EngineError, match=r"needs 4 ranks, but srun started 8") as refused:
        discover(SLURM, 4)
    assert "--mpi=" in refused.value.hint


def test_own_rank_is_known_before_anything_is_checked():
    assert own_rank(SLURM) == 5
    assert own_rank({}) == 0


def test_host_name_is_what_the_scheduler_calls_the_node():
    """A node's name in Slurm need not be what the machine calls itself, and users know the former."""
    assert host_name({"SLURMD_NODENAME": "n3"}) == "n3"
    assert host_name({}) == socket.gethostname()
