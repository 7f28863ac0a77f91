"""Which rank am I: what each launcher calls it."""

from __future__ import annotations

import os
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


# The first row whose rank and local rank are both set wins. An explicit RANK beats what a launcher
# set. Flux stands before whatever may have started its own brokers, whose variables every rank inherits;
# its own it keeps from batch scripts. Slurm stands last: mpiexec inside an allocation hands Slurm's
# variables of the process that started it down to every rank, and srun --mpi=pmi2 sets PMI_RANK without
# a local rank.
_LAUNCHERS = (
    _Names("the environment", "RANK", "LOCAL_RANK", "WORLD_SIZE"),
    _Names("flux run", "FLUX_TASK_RANK", "FLUX_TASK_LOCAL_ID", "FLUX_JOB_SIZE"),
    _Names("Open MPI mpiexec", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    _Names("PALS mpiexec", "PALS_RANKID", "PALS_LOCAL_RANKID", "PMI_SIZE"),
    _Names("MPICH mpiexec", "PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
    _Names("jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE"),
    _Names("srun", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
)


def host_name(environment: Mapping[str, str] = os.environ) -> str:
    """What the scheduler calls this node, else what it calls itself."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


def started_by_mpich(environment: Mapping[str, str]) -> bool:
    """Whether MPICH's mpiexec, or one that descends from it, watches over this process."""
    return "MPI_LOCALRANKID" in environment


def own_rank(environment: Mapping[str, str]) -> int:
    """This process's rank as its launcher says; 0 if none does.

    Raises:
        EngineError: what the launcher says is no rank.
    """
    names = _recognise(environment)
    return _number(environment, names.rank) if names else 0


def discover(environment: Mapping[str, str], expected: int) -> Place:
    """This process's place, from the variables its launcher set.

    Args:
        environment: the process's environment.
        expected: the world size that the decomposition needs.

    Raises:
        EngineError: no launcher is recognised, or another number of ranks was started.
    """
    names = _recognise(environment)
    if names is not None:
        return _place(names, environment, expected)
    if expected == 1:
        return Place(0, 0, 1, host_name(environment))
    known = ", ".join(names.rank for names in _LAUNCHERS)
    raise EngineError(
        f"this process cannot tell which of {expected} ranks it is: none of {known} is set",
        "start it through job.sh, srun or mpiexec",
    )


def _recognise(environment: Mapping[str, str]) -> _Names | None:
    if "RANK" in environment and "LOCAL_RANK" not in environment:
        raise EngineError(
            f"RANK={environment['RANK']} is set, but LOCAL_RANK is not",
            "set both, or unset RANK to take the rank from the launcher",
        )
    found = (names for names in _LAUNCHERS if names.rank in environment and names.local_rank in environment)
    return next(found, None)


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment[name]
    if not (value.isascii() and value.isdigit()):
        raise EngineError(f"{name}={value!r} is not a whole number", "it counts ranks from 0")
    return int(value)


def _place(names: _Names, environment: Mapping[str, str], expected: int) -> Place:
    # A launcher that sets no size leaves it to the decomposition.
    size = _number(environment, names.world_size) if names.world_size in environment else expected
    if size != expected:
        raise EngineError(
            f"the decomposition needs {expected} ranks, but {names.launcher} started {size} "
            f"({names.world_size}={size})",
            f"start exactly {expected} processes; if each says it is alone, check srun's --mpi=",
        )
    rank = _number(environment, names.rank)
    if rank >= size:
        raise EngineError(
            f"{names.rank}={rank}, but {size} ranks are numbered 0 to {size - 1}",
            f"start exactly {expected} processes",
        )
    return Place(rank, _number(environment, names.local_rank), size, host_name(environment))
