"""The batch script of a job: templates place, Python decides."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined, TemplateError

from hpcdl import resources
from hpcdl.errors import SiteError
from hpcdl.run_folder import RunFolder
from hpcdl.schedulers import launch
from hpcdl.schedulers.base import Job
from hpcdl.schedulers.directives import job_name
from hpcdl.schedulers.environment import exports
from hpcdl.schedulers.known import scheduler


def render(job: Job, environment: Mapping[str, str] = os.environ) -> str:
    """The script, complete; ``environment`` says where the user's own templates are.

    Raises:
        SiteError, UsageError, SchedulerError: the site and the experiment cannot be brought together,
            or a template of the user's is wrong.
    """
    backend = scheduler(job.site.scheduler.kind)
    values = _values(job) | {"directives": backend.directives(job)}
    try:
        return _templates(environment).get_template(backend.TEMPLATE).render(values)
    except TemplateError as error:
        raise SiteError(
            f"template {backend.TEMPLATE}: {error}",
            "correct it in the folder named by $HPCDL_PATH or in your configuration folder",
        ) from None


def _templates(environment: Mapping[str, str]) -> Environment:
    folders = resources.search_path("templates", environment)
    jinja = Environment(  # noqa: S701 - shell, not HTML: what the user wrote goes through quote
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters["quote"] = quote
    return jinja


def quote(text: str) -> str:
    """One word of bash. A carriage return is spelled out: sbatch and qsub refuse scripts that hold CR LF."""
    return shlex.quote(text).replace("\r", r"'$'\r''")


def _values(job: Job) -> dict[str, object]:
    """What every template may use. Text that a user or a site wrote must go through ``quote``."""
    folder, software = RunFolder(job.folder), job.site.software
    interpreter = Path(job.python)
    return {
        "run": job_name(job),
        "attempt": job.attempt,
        "folder": str(folder.path),
        "log": str(folder.job_log(job.attempt)),
        "exit_file": str(folder.job_exit(job.attempt)),
        "modules": [word for line in software.modules for word in line.split()],
        "setup": software.setup,
        "exports": exports(job),
        # A laptop's mpiexec comes with its Python; a machine's own comes by PATH.
        "path": str(interpreter.parent)
        if launch.starts_mpiexec_here(job) and interpreter.is_absolute()
        else None,
        "step": "_fork.sh.j2" if launch.forks(job) else "_command.sh.j2",
        "command": launch.command(job),
        "ranks": job.run.layout.ranks,
    }
