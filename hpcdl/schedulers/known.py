"""Every scheduler hpcdl speaks to. To add one: write a module that satisfies ``Scheduler``, name it here."""

from __future__ import annotations

from hpcdl.errors import SiteError
from hpcdl.schedulers import local, pbs, slurm
from hpcdl.schedulers.base import Scheduler

SCHEDULERS: dict[str, Scheduler] = {"slurm": slurm, "pbs": pbs, "local": local}


def scheduler(kind: str) -> Scheduler:
    """The backend of ``kind``.

    Raises:
        SiteError: there is none.
    """
    if kind not in SCHEDULERS:
        raise SiteError(
            f"scheduler.kind {kind!r}: hpcdl has no backend for it, only {', '.join(SCHEDULERS)}",
            "on such a machine, start hpcdl inside an allocation with --site local",
        )
    return SCHEDULERS[kind]
