"""Running another program: the only module of the launcher that starts a process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcdl.errors import SchedulerError

# Variables of an enclosing job would silently reshape a nested submission; SLURM_CONF and
# friends say where the cluster is and must stay.
_JOB_PREFIXES = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "PBS_", "PMI_", "PMIX_", "PALS_", "FLUX_")
_CLUSTER_VARIABLES = frozenset(
    {"SLURM_CONF", "PBS_CONF_FILE", "PBS_SERVER", "PBS_DEFAULT", "PBS_EXEC", "FLUX_URI"}
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


def outside_job(environment: dict[str, str]) -> dict[str, str]:
    """The environment less what an enclosing scheduler job put there."""
    return {
        name: value
        for name, value in environment.items()
        if name in _CLUSTER_VARIABLES or not name.startswith(_JOB_PREFIXES)
    }


def run(command: Sequence[str], cwd: Path | None = None, timeout_s: float = 60.0) -> Completed:
    """Run ``command`` without a shell and wait for it.

    Raises:
        SchedulerError: the program is not on PATH, may not be executed, or does not answer in time.
    """
    try:
        finished = subprocess.run(
            list(command), cwd=cwd, timeout=timeout_s, stdin=subprocess.DEVNULL, capture_output=True,
            encoding="utf-8", errors="replace", env=outside_job(dict(os.environ)), check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise SchedulerError(
            f"cannot run {command[0]!r}: there is no such program on this machine's PATH",
            "load the scheduler's module or log in to a node that has it; or choose another --site",
        ) from None
    except PermissionError:
        raise SchedulerError(f"cannot run {command[0]!r}: permission denied") from None
    except subprocess.TimeoutExpired:
        raise SchedulerError(
            f"{command[0]!r} gave no answer within {timeout_s:.0f} s",
            "the scheduler may be overloaded or down; nothing was changed here, try again later",
        ) from None
    return Completed(finished.returncode, finished.stdout, finished.stderr)
