"""The head of a batch script: what every scheduler's directives have in common.

Nothing can be quoted in a directive, and a wrong character is not refused but cuts the line short
(sbatch takes ``#`` for the beginning of a comment and silently drops what follows). So a directive
holds checked words only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from hpcdl.errors import SchedulerError, SiteError, UsageError
from hpcdl.run_folder import RunFolder, array_name
from hpcdl.schedulers.base import Directive, Job, Origin
from hpcdl.sites.site import Site
from hpcdl.spec.job import directive_word
from hpcdl.units import parse_walltime


def spec(key: str) -> Origin:
    """Asked for by the experiment."""
    return Origin("spec", key)


def site(key: str) -> Origin:
    """Asked for by the site file."""
    return Origin("site", key)


def permitted(directives: Iterable[Directive], job: Job) -> list[Directive]:
    """``directives`` and the site's own, less the optional ones that the site forbids.

    Raises:
        SiteError: the site forbids what the job cannot do without, or its own lines are no directives.
    """
    machine = job.site
    forbidden = {entry.split("=")[0].strip() for entry in machine.scheduler.forbidden}
    kept = []
    for directive in directives:
        if directive.option not in forbidden:
            kept.append(directive)
        elif not directive.optional:
            raise SiteError(
                f"{machine.place('scheduler', 'forbidden')}: site {machine.name} forbids {directive.option}, "
                f"but this job needs {directive.text!r}",
                "correct scheduler.forbidden or scheduler.gpu_request in the site file",
            )
    return [*kept, *_of_site(job)]


def _of_site(job: Job) -> Iterable[Directive]:
    """The lines that the site, and the queue, want in every job."""
    key, partition = job.site.partition(job.run.experiment.resources.queue)
    for index, line in enumerate(job.site.scheduler.directives):
        yield _own(line, job.site, ("scheduler", "directives", index))
    for index, line in enumerate(partition.directives):
        yield _own(line, job.site, ("partitions", key, "directives", index))


def _own(line: str, machine: Site, keys: tuple[str | int, ...]) -> Directive:
    name = ".".join(map(str, keys))
    if not line.startswith("-") or "#" in line:
        raise SiteError(
            f"{machine.place(*keys)}: {name}: {line!r} is not a directive",
            "give it as on the command line, without its prefix and without #: --exclusive",
        )
    return Directive(line, "", site(name))


def queue(job: Job) -> tuple[str, Origin]:
    """What the scheduler calls the way in, and who says so.

    Raises:
        SiteError: it is no word that a directive can hold.
    """
    asked = job.run.experiment.resources.queue
    key, partition = job.site.partition(asked)
    name = partition.name or key
    try:
        directive_word(name)
    except ValueError as error:
        raise SiteError(
            f"{job.site.place('partitions', key, '<key>')}: partitions: {error}",
            "say under name: what the scheduler calls it",
        ) from None
    return name, spec("resources.queue") if asked else site("default_partition")


def account(job: Job) -> tuple[str, Origin] | None:
    """Who pays, and who says so: the experiment, else the site's account variable, then or now.

    Raises:
        UsageError: the site wants an account and none is given, or the variable holds none.
    """
    given, variable = job.run.experiment.resources.account, job.site.scheduler.account_variable
    if given is not None and not job.run.account_variable:
        return given, spec("resources.account")
    payer = given or account_here(job.site)
    if payer is not None:
        return payer, site(f"scheduler.account_variable (${job.run.account_variable or variable})")
    if "account" in job.site.scheduler.mandatory:
        also = f", or export {variable}" if variable else ""
        place = job.site.place("scheduler", "mandatory")
        raise UsageError(
            f"{place}: site {job.site.name} takes no job without an account",
            f"set resources.account in the experiment{also}",
        )
    return None


def account_here(machine: Site, environment: Mapping[str, str] = os.environ) -> str | None:
    """Who pays, as the site's account variable says it in this process.

    Raises:
        UsageError: it holds no word that a directive can hold.
    """
    variable = machine.scheduler.account_variable
    if variable is None or not environment.get(variable):
        return None
    try:
        return directive_word(environment[variable])
    except ValueError as error:
        raise UsageError(f"environment variable {variable}: {error}") from None


def excluded(job: Job) -> Origin:
    """Who says that there are nodes which the job must not get."""
    asked = set(job.exclude) <= set(job.run.experiment.resources.exclude)
    return spec("resources.exclude") if asked else Origin("default")


def job_name(job: Job) -> str:
    """What the scheduler is to call the job: ``name_of`` its run and attempt, or what its links are called.

    Raises:
        SchedulerError: it is no word that a directive can hold.
    """
    if job.array is not None and job.array.links is not None:
        return _plain(job.array.links.name)
    return name_of(job.run.run, job.attempt, in_array=job.array is not None)


def name_of(run: str, attempt: int, *, in_array: bool) -> str:
    """The name by which a job is found again whose id nobody has noted: no two jobs of all runs share it.

    It is the run's id, and of an array what the ids of its elements have in common; a later attempt adds
    its number.

    Raises:
        SchedulerError: it is no word that a directive can hold.
    """
    name = _plain(array_name(run) if in_array else run)
    return name if attempt == 1 else f"{name}.{attempt}"


def job_log(job: Job, index: str = "") -> str:
    """The job's log, relative to the run folder: that folder may have any name, this path is plain.

    Args:
        job: what is submitted.
        index: what the scheduler replaces by an element's index, for an array: each logs to its own folder.

    Raises:
        SchedulerError: an array's folder has a name that no directive can hold.
    """
    folder = RunFolder(job.folder)
    if job.array is None:
        return str(folder.job_log(job.attempt).relative_to(folder.path))
    _plain((job.array.links or folder.path).name)
    return os.path.relpath(RunFolder(job.element(index)).job_log(job.attempt), folder.path)


def _plain(run: str) -> str:
    try:
        return directive_word(run)
    except ValueError as error:
        raise SchedulerError(f"the run id cannot be a job name: {error}") from None


_LEAD_S, _LEAD_PART = 120, 10  # two minutes, but at most a tenth of the walltime


def warning_lead(job: Job) -> int:
    """How many seconds before the walltime's end the ranks are asked to save themselves; 0: not at all."""
    experiment = job.run.experiment
    walltime = parse_walltime(experiment.resources.walltime)
    asked = experiment.before_limit_seconds
    return min(_LEAD_S, walltime // _LEAD_PART) if asked is None else asked
