"""The head of a batch script: what every scheduler's directives have in common.

Nothing can be quoted in a directive, and a wrong character is not refused but cuts the line short
(sbatch takes ``#`` for the beginning of a comment and silently drops what follows). So a directive
holds checked words only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from hpcdl.errors import SchedulerError, SiteError, UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.schedulers.base import Job
from hpcdl.sites.site import Site
from hpcdl.spec.job import directive_word


class Directive(NamedTuple):
    """One request to the scheduler."""

    option: str  # as a site's forbidden list spells it: --gres, -k
    value: str = ""  # with what separates it from the option: "=4", " oed"
    optional: bool = False  # whether a job is still right without it

    @property
    def text(self) -> str:
        """The line without the scheduler's prefix."""
        return self.option + self.value


def permitted(directives: Iterable[Directive], site: Site) -> list[str]:
    """Lines for ``directives`` and for the site's own, less the optional ones that the site forbids.

    Raises:
        SiteError: the site forbids what the job cannot do without, or its own lines are no directives.
    """
    forbidden = {entry.split("=")[0].strip() for entry in site.scheduler.forbidden}
    texts = []
    for directive in directives:
        if directive.option not in forbidden:
            texts.append(directive.text)
        elif not directive.optional:
            raise SiteError(
                f"site {site.name} forbids {directive.option}, but this job needs {directive.text!r}",
                "correct scheduler.forbidden or scheduler.gpu_request in the site file",
            )
    return texts + [_own(line, site) for line in site.scheduler.directives]


def _own(line: str, site: Site) -> str:
    if not line.startswith("-") or "#" in line:
        raise SiteError(
            f"site {site.name}, scheduler.directives: {line!r} is not a directive",
            "give it as on the command line, without its prefix and without #: --exclusive",
        )
    return line


def account(job: Job, environment: Mapping[str, str] = os.environ) -> str | None:
    """Who pays: the experiment's account, else the value of the site's account variable.

    Raises:
        UsageError: the site wants an account and none is given, or the variable holds none.
    """
    given, variable = job.run.experiment.resources.account, job.site.scheduler.account_variable
    if given is None and variable is not None and environment.get(variable):
        given = _word(environment[variable], f"environment variable {variable}")
    if given is None and "account" in job.site.scheduler.mandatory:
        also = f", or export {variable}" if variable else ""
        raise UsageError(
            f"site {job.site.name} takes no job without an account",
            f"set resources.account in the experiment{also}",
        )
    return given


def _word(value: str, place: str) -> str:
    try:
        return directive_word(value)
    except ValueError as error:
        raise UsageError(f"{place}: {error}") from None


def job_name(job: Job) -> str:
    """The run's id.

    Raises:
        SchedulerError: it is no word that a directive can hold.
    """
    try:
        return directive_word(job.run.run)
    except ValueError as error:
        raise SchedulerError(f"the run id cannot be a job name: {error}") from None


def job_log(job: Job) -> str:
    """The job's log, relative to the run folder: that folder may have any name, this path is plain."""
    folder = RunFolder(job.folder)
    return str(folder.job_log(job.attempt).relative_to(folder.path))
