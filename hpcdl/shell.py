"""Running another program: the only module of the launcher that starts a process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hpcdl.errors import NoAnswerError, SchedulerError


class _Source(NamedTuple):
    """Something that leaves variables in a job's environment; a name ending in _ stands for all its kind."""

    leaves: str
    stays: str  # what of it says where the scheduler is, or what the user wants
    why: str  # what a submission that inherits the rest would suffer


# Seen in jobs of Slurm 22.05, OpenPBS 23.06, Hydra 5.0 and Open MPI 4.1; PALS, Flux, LSF and torchrun: from
# their manuals.
_SOURCES = (
    _Source(
        "SLURM_ SLURMD_ SBATCH_ SRUN_ SALLOC_",
        "SLURM_CONF SLURM_CONF_SERVER SLURM_JWT",
        "sbatch and srun take them for options, which count more than the script's own",
    ),
    _Source(
        "SQUEUE_ SCANCEL_ SACCT_",
        "",
        "not a job's but a user's: filters and questions that would hide a job or wait for an answer",
    ),
    _Source(
        "PBS_",
        "PBS_CONF_FILE PBS_SERVER PBS_DEFAULT PBS_EXEC PBS_HOME PBS_PRIMARY PBS_SECONDARY",
        "another job's node file and folders; PBS_DPREFIX would make comments of directives",
    ),
    _Source(
        "LSB_ LSF_ LSFUSER LS_JOBPID LS_SUBCWD LS_EXEC_T",
        "LSF_ENVDIR LSF_BINDIR LSF_SERVERDIR LSF_LIBDIR",
        "bsub takes LSB_ variables for options, jsrun for its hosts",
    ),
    _Source("FLUX_", "FLUX_URI", "the rank and the key-value store of another job's task"),
    _Source("PALS_ JSM_", "", "ranks and sockets of another job's launcher"),
    _Source(
        "PMI_ HYDI_ MPI_LOCALRANKID MPI_LOCALNRANKS", "", "MPI would join a process manager that is not there"
    ),
    _Source("PMIX_", "PMIX_MCA_ PMIX_INSTALL_PREFIX", "as PMI_; parameters are the user's"),
    _Source(
        "OMPI_COMM_WORLD_ OMPI_UNIVERSE_SIZE OMPI_APP_CTX_NUM_PROCS OMPI_NUM_APP_CTX OMPI_FIRST_RANKS "
        "OMPI_FILE_LOCATION OMPI_COMMAND OMPI_ARGV OMPI_MCA_ess OMPI_MCA_ess_ OMPI_MCA_orte_ OMPI_MCA_pmix "
        "OMPI_MCA_initial_wdir OMPI_MCA_mpi_oversubscribe OMPI_MCA_shmem_RUNTIME_QUERY_hint PRTE_MCA_",
        "",
        "ranks would take themselves for another mpirun's; other OMPI_MCA_ parameters are the user's",
    ),
    _Source("HPCDL_ATTEMPT HPCDL_JOB", "", "an attempt that this process is in"),
    _Source(
        "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_NAME "
        "ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_",
        "",
        "sbatch hands them on: every rank would take itself for the one that submitted",
    ),
)

# What a job, or a user, calls the devices and cores of this node means others on another node.
_OF_THIS_NODE = (
    "CUDA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES GPU_DEVICE_ORDINAL ZE_AFFINITY_MASK "
    "OMP_PLACES GOMP_CPU_AFFINITY"
)


@dataclass(frozen=True)
class Completed:
    """What a finished program said."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def words(self) -> str:
        """Its own explanation: standard error, or standard output when that is empty."""
        return (self.stderr.strip() or self.stdout.strip()) or f"(no output, exit code {self.exit_code})"

    @property
    def killed(self) -> bool:
        """Whether a signal ended it, so that it may have done more than it said."""
        return self.exit_code < 0


def outside_job(environment: Mapping[str, str], *, here: bool = False) -> dict[str, str]:
    """The environment less what an enclosing scheduler job put there.

    Args:
        environment: of this process.
        here: whether what is started stays on this node, and so keeps to the devices it was given.
    """
    return {
        name: value
        for name, value in environment.items()
        if not any(_among(name, source.leaves) and not _among(name, source.stays) for source in _SOURCES)
        and (here or not _among(name, _OF_THIS_NODE))
    }


def _among(name: str, names: str) -> bool:
    return any(name == entry or (entry.endswith("_") and name.startswith(entry)) for entry in names.split())


def run(
    command: Sequence[str], cwd: Path | None = None, timeout_s: float = 60.0, *, here: bool = False
) -> Completed:
    """Run ``command`` without a shell, outside of the job one may be in, and wait for it.

    Args:
        command: the program and its arguments.
        cwd: where it runs; here if not given.
        timeout_s: how long it may take.
        here: whether what it starts stays on this node.

    Raises:
        NoAnswerError: the program does not end in time.
        SchedulerError: it is not on PATH, or cannot be executed.
    """
    try:
        finished = subprocess.run(
            list(command), cwd=cwd, timeout=timeout_s, stdin=subprocess.DEVNULL, capture_output=True,
            encoding="utf-8", errors="replace", env=outside_job(os.environ, here=here), check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise SchedulerError(
            f"cannot run {command[0]!r}: there is no such program on this machine's PATH",
            "load the scheduler's module or log in to a node that has it; or choose another --site",
        ) from None
    except OSError as error:  # also arguments that are too long
        raise SchedulerError(f"cannot run {command[0]!r}: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise NoAnswerError(
            f"{command[0]!r} gave no answer within {timeout_s:.0f} s",
            "the scheduler may be overloaded or down, and may yet do it; look there before you try again",
        ) from None
    return Completed(finished.returncode, finished.stdout, finished.stderr)
