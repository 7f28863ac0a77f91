"""Asking the scheduler of the machine one is on. Nothing is changed: every question is read-only."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import NamedTuple

from hpcdl import shell
from hpcdl.errors import SchedulerError, UsageError
from hpcdl.survey import pbs, slurm
from hpcdl.survey.seen import Machine

TIMEOUT_S = 60.0


class _Way(NamedTuple):
    program: str  # whose presence tells the scheduler
    commands: tuple[tuple[str, ...], ...]
    machine: Callable[[str, str, str], Machine]


_WAYS = {
    "slurm": _Way("scontrol", slurm.COMMANDS, slurm.machine),
    "pbs": _Way("pbsnodes", pbs.COMMANDS, pbs.machine),
}
KINDS = tuple(_WAYS)
"""Schedulers that can be asked."""


def here() -> list[str]:
    """Schedulers that can be asked whose programs are on PATH."""
    return [kind for kind, way in _WAYS.items() if shutil.which(way.program)]


def chosen(kind: str | None) -> str:
    """The scheduler to ask: ``kind``, or the one that is here.

    Raises:
        UsageError: ``kind`` cannot be asked, or several are here.
        SchedulerError: none is here.
    """
    found = here() if kind is None else [kind]
    if not found:
        programs = ", ".join(way.program for way in _WAYS.values())
        raise SchedulerError(
            f"no scheduler's programs are on PATH here; looked for {programs}",
            "load the scheduler's module or log in to a node that has it",
        )
    if len(found) > 1:
        raise UsageError(f"there are programs of {' and '.join(found)} here", "choose one with --scheduler")
    if found[0] not in _WAYS:
        raise UsageError(
            f"a {found[0]} machine cannot be asked yet, only {', '.join(KINDS)}",
            "copy the generic site file of your scheduler and correct it by hand",
        )
    return found[0]


def ask(kind: str, timeout_s: float = TIMEOUT_S) -> Machine:
    """What the scheduler says of its machine.

    Raises:
        UsageError: it is one that cannot be asked.
        SchedulerError: it is not here, gives no answer in time, refuses (with its words) or answers nonsense.
    """
    way = _WAYS[chosen(kind)]
    config, queues, nodes = (_answer(command, timeout_s) for command in way.commands)
    return way.machine(config, queues, nodes)


def launcher(kind: str) -> str:
    """What starts ranks under this scheduler; for PBS, whose ``mpiexec`` is on PATH."""
    if kind == "slurm":
        return "srun"
    try:
        words = shell.run(("mpiexec", "--version"), timeout_s=TIMEOUT_S).words
    except SchedulerError:
        words = ""
    return mpiexec(words)


def mpiexec(words: str) -> str:
    """The launcher whose ``mpiexec --version`` says ``words``; Hydra, the commonest, if they tell none."""
    named = {"PALS": "mpiexec-pals", "Open MPI": "mpiexec-openmpi", "OpenRTE": "mpiexec-openmpi"}
    return next((name for mark, name in named.items() if mark in words), "mpiexec-hydra")


def _answer(command: tuple[str, ...], timeout_s: float) -> str:
    result = shell.run(command, timeout_s=timeout_s)
    if result.exit_code:
        raise SchedulerError(
            f"{' '.join(command)!r} failed: {result.words}",
            "nothing was changed; ask whoever runs the machine",
        )
    return result.stdout
