"""Every scheduler hpcdl speaks to. To add one: write a module that satisfies ``Scheduler``, name it here."""

from __future__ import annotations

from hpcdl.schedulers import flux, local, lsf, pbs, slurm
from hpcdl.schedulers.base import Scheduler

SCHEDULERS: dict[str, Scheduler] = {"slurm": slurm, "pbs": pbs, "lsf": lsf, "flux": flux, "local": local}
"""By what a site file calls them; there is one for each word that it may use."""


def scheduler(kind: str) -> Scheduler:
    """The backend of ``kind``."""
    return SCHEDULERS[kind]
