"""Every launcher has its own names for which rank a process is."""

import pytest

from hpcdl.engine.ranks import discover, own_rank
from hpcdl.errors import EngineError

SLURM = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    ("environment", "rank", "local_rank"),
    [
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, 3, 1),
        (SLURM, 5, 1),
        ({"PALS_RANKID": "6", "PALS_LOCAL_RANKID": "2"}, 6, 2),
        ({"PMI_RANK": "7", "MPI_LOCALRANKID": "3", "PMI_SIZE": "8"}, 7, 3),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_SIZE": "8"}, 2, 0),
        ({"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "8", **SLURM}, 1, 0),
    ],
)
def test_discover_reads_each_launchers_names(environment, rank, local_rank):
    place = discover(environment, 8)
    assert (place.rank, place.local_rank, place.world_size) == (rank, local_rank, 8)


def test_discover_one_rank_needs_no_launcher():
    assert discover({}, 1).rank == 0


def test_discover_without_a_launcher_says_what_was_looked_for():
    with pytest.raises(EngineError, match="SLURM_PROCID"):
        discover({}, 4)


def test_discover_another_number_of_ranks_names_both():
    """N singletons under a wrong --mpi= would train N separate models without a word."""
    with pytest.raises(EngineError, match=r"needs 4 ranks, but srun started 8"):
        discover(SLURM, 4)


def test_own_rank_is_known_before_anything_is_checked():
    assert own_rank(SLURM) == 5
    assert own_rank({}) == 0
