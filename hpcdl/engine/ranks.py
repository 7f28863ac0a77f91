"""Which rank am I: what each launcher calls it."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from hpcdl.errors import EngineError


@dataclass(frozen=True)
class Place:
    """One rank among all, and where it runs."""

    rank: int
    local_rank: int
    world_size: int
    host: str


@dataclass(frozen=True)
class _Names:
    launcher: str
    rank: str
    local_rank: str
    world_size: str


# The first row whose rank is set wins; an explicit RANK beats what a launcher set.
_LAUNCHERS = (
    _Names("environment", "RANK", "LOCAL_RANK", "WORLD_SIZE"),
    _Names("srun", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
    _Names("PALS mpiexec", "PALS_RANKID", "PALS_LOCAL_RANKID", "PALS_SIZE"),
    _Names("MPICH mpiexec", "PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
    _Names("Open MPI mpiexec", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
)


def own_rank(environment: Mapping[str, str]) -> int:
    """This process's rank as its launcher says; 0 if none does."""
    return next((int(environment[names.rank]) for names in _LAUNCHERS if names.rank in environment), 0)


def discover(environment: Mapping[str, str], expected: int) -> Place:
    """This process's place, from the variables its launcher set.

    Args:
        environment: the process's environment.
        expected: the world size that the decomposition needs.

    Raises:
        EngineError: no launcher is recognised, or another number of ranks was started.
    """
    for names in _LAUNCHERS:
        if names.rank in environment:
            return _place(names, environment, expected)
    if expected == 1:
        return Place(0, 0, 1, socket.gethostname())
    known = ", ".join(names.rank for names in _LAUNCHERS)
    raise EngineError(
        f"this process cannot tell which of {expected} ranks it is: none of {known} is set",
        "start it through job.sh, srun or mpiexec",
    )


def _place(names: _Names, environment: Mapping[str, str], expected: int) -> Place:
    # A launcher that sets no size (PALS before 1.2) leaves it to the decomposition.
    size = int(environment.get(names.world_size, expected))
    if size != expected:
        raise EngineError(
            f"the decomposition needs {expected} ranks, but {names.launcher} started {size} "
            f"({names.world_size}={size})",
            "start as many processes as the decomposition has ranks",
        )
    rank = int(environment[names.rank])
    local = int(environment.get(names.local_rank, rank))
    return Place(rank, local, size, environment.get("SLURMD_NODENAME") or socket.gethostname())
