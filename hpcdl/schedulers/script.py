"""The batch script of a job: templates place, Python decides."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined, TemplateError

from hpcdl import resources
from hpcdl.errors import SchedulerError, SiteError
from hpcdl.run_folder import BY_HAND, NEARLY_OVER, NOBODY, RunFolder
from hpcdl.schedulers import launch
from hpcdl.schedulers.base import Job
from hpcdl.schedulers.directives import name_of, warning_lead
from hpcdl.schedulers.environment import ATTEMPT, exports
from hpcdl.schedulers.explain import Line, Template, explain
from hpcdl.schedulers.known import scheduler
from hpcdl.spec.load import Document
from hpcdl.units import parse_walltime


def render(job: Job, environment: Mapping[str, str] = os.environ) -> str:
    """The script, complete; ``environment`` says where the user's own templates are.

    Raises:
        SiteError, UsageError, SchedulerError: the site and the experiment cannot be brought together,
            or a template of the user's is wrong.
    """
    backend = scheduler(job.site.scheduler.kind)
    values = _values(job) | {
        "directives": [f"{backend.PREFIX} {line.text}" for line in backend.directives(job)],
        "own_templates": _own_folders(environment.get("HPCDL_PATH", "")),
    }
    try:
        return _templates(job, environment).get_template(backend.TEMPLATE).render(values)
    except TemplateError as error:
        raise SiteError(
            f"template {backend.TEMPLATE}: {error}",
            "correct it in the folder named by $HPCDL_PATH or in your configuration folder",
        ) from None


def explained(job: Job, asked: Document, environment: Mapping[str, str] = os.environ) -> list[Line]:
    """The lines of the script with their origins; arguments as of ``explain`` and ``render``.

    Raises:
        SiteError, UsageError, SchedulerError: as ``render``.
    """
    text, name = render(job, environment), scheduler(job.site.scheduler.kind).TEMPLATE
    folders = resources.search_path("templates", environment)
    file = next(folder / name for folder in folders if (folder / name).is_file())
    return explain(text, job, asked, Template(str(file), file.read_text(encoding="utf-8")))


def _own_folders(listed: str) -> str:
    """``$HPCDL_PATH`` for a job, which may not have it and begins in another folder."""
    return os.pathsep.join(str(Path(entry).absolute()) for entry in listed.split(os.pathsep) if entry)


def _timer(job: Job) -> int | None:
    """Seconds after which the script itself asks the ranks to save; None where it need not."""
    lead = warning_lead(job)
    if not lead or not scheduler(job.site.scheduler.kind).TIMED:
        return None
    return parse_walltime(job.run.experiment.resources.walltime) - lead


def _goes_on(job: Job) -> bool:
    """Whether the script itself may submit the next attempt."""
    site, backend = job.site, scheduler(job.site.scheduler.kind)
    from_jobs = backend.SUBMITS_FROM_JOBS and site.policy.submit_from_jobs
    return from_jobs and site.software.container is None and job.run.experiment.chain.attempts > 1


def _awaited(job: Job) -> list[str]:
    """The folders of runs that must have completed, which the scheduler cannot know."""
    if job.after is None or job.after.ending != "ok" or job.site.software.container:
        return []
    return [str(folder) for folder in job.after.folders]


def _limit(job: Job) -> int:
    """Seconds after which a TERM counts as the end of the walltime: less than a minute before it."""
    walltime = parse_walltime(job.run.experiment.resources.walltime)
    return walltime - min(60, walltime // 4)


def _templates(job: Job, environment: Mapping[str, str]) -> Environment:
    folders = tuple(resources.search_path("templates", environment))
    return _environment(folders, None if job.array is None else job.folder)


@lru_cache(maxsize=4)  # the scripts of a sweep are rendered one after the other
def _environment(folders: tuple[Path, ...], element: Path | None) -> Environment:
    """Templates from these folders; ``element`` is the folder for which that of a running element stands."""
    jinja = Environment(  # noqa: S701 - shell, not HTML: what the user wrote goes through quote
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters["quote"] = quote if element is None else _element_quote(element)
    return jinja


def quote(text: str) -> str:
    """One word of bash, on one line.

    A newline is spelled out: bsub and flux batch look for directives in every line of a script, also in
    those of a quoted text. So is a carriage return: sbatch and qsub refuse scripts that hold CR LF.
    """
    return shlex.quote(text).replace("\r", r"'$'\r''").replace("\n", r"'$'\n''")


def _element_quote(folder: Path) -> Callable[[str], str]:
    """``quote`` for the script of an array: the running element's folder stands for ``folder``."""
    own = str(folder)

    def quoted(text: str) -> str:
        if text != own and not text.startswith(f"{own}/"):
            return quote(text)
        rest = text.removeprefix(own)
        return '"$hpcdl_folder"' + (quote(rest) if rest else "")

    return quoted


def _element_folder(job: Job) -> str | None:
    """The folder of the element that runs the script, or the link to it, as a word of bash.

    None where there is one run only.

    Raises:
        SchedulerError: the scheduler has no arrays.
    """
    if job.array is None:
        return None
    elements = scheduler(job.site.scheduler.kind).ELEMENTS
    if elements is None:
        raise SchedulerError(f"scheduler {job.site.scheduler.kind} has no job arrays")
    return f'{quote(str(job.element("")).removesuffix("-"))}-"${{{elements.variable}:?}}"'


def _own_job(job: Job) -> str:
    """The id of the job that runs the script, as a word of bash."""
    backend = scheduler(job.site.scheduler.kind)
    return backend.ELEMENTS.own_job if job.array and backend.ELEMENTS else backend.OWN_JOB


def _of_attempt(file: Callable[[RunFolder, int], Path]) -> str:
    """A file of the attempt that the script is, as a word of bash: a scheduler may run a job again."""
    path = file(RunFolder(Path("$hpcdl_folder")), 0)
    return f'"{path}"'.replace("attempt-0", "attempt-$hpcdl_attempt")


def _values(job: Job) -> dict[str, object]:
    """What every template may use. Text that a user or a site wrote must go through ``quote``."""
    folder, software = RunFolder(job.folder), job.site.software
    interpreter = Path(job.python)
    return {
        "run": name_of(job.run.run, 1, in_array=job.array is not None),
        "attempt": job.attempt,
        "folder": str(folder.path),
        "element_folder": _element_folder(job),
        "linked": job.array is not None and job.array.links is not None,
        "log": str(folder.job_log(job.attempt)),
        "own_job": _own_job(job),
        "claim": _of_attempt(RunFolder.claim),
        "start": _of_attempt(RunFolder.start),
        "logs": _of_attempt(RunFolder.logs),
        "exits": _of_attempt(RunFolder.exits),
        "job_log": _of_attempt(RunFolder.job_log),
        "exit_file": _of_attempt(RunFolder.job_exit),
        "request_file": _of_attempt(RunFolder.request),
        "rendezvous_file": _of_attempt(RunFolder.rendezvous),
        "nobody": NOBODY,
        "by_hand": BY_HAND,
        "nearly_over": NEARLY_OVER,
        "timer": _timer(job),
        "goes_on": _goes_on(job),
        "limit": _limit(job),
        "awaited": _awaited(job),
        "python": job.python,
        "modules": [word for line in software.modules for word in line.split()],
        "setup": software.setup,
        # Which attempt it is, the script itself finds out.
        "exports": [(name, value) for name, value in exports(job) if name != ATTEMPT],
        # A laptop's mpiexec comes with its Python; a machine's own comes by PATH.
        "path": str(interpreter.parent)
        if launch.starts_mpiexec_here(job) and interpreter.is_absolute()
        else None,
        "script": str(folder.script),
        "step": launch.step(job),
        "command": launch.command(job),
        "ranks": job.run.layout.ranks,
        "nodes": job.run.layout.nodes,
        "ranks_per_node": job.run.layout.ranks_per_node,
        "hosts": _of_attempt(RunFolder.hosts) if launch.starts_hosts(job) else None,
    }
