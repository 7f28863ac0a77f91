"""Why each line of a script stands there: who asked for it, and where that is written. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from hpcdl.schedulers import launch
from hpcdl.schedulers.base import Job, Origin
from hpcdl.schedulers.directives import site
from hpcdl.schedulers.environment import exported
from hpcdl.schedulers.known import scheduler
from hpcdl.sites import provenance
from hpcdl.spec.load import Document


class Template(NamedTuple):
    """The template that a script was rendered from."""

    file: str
    source: str


class Line(NamedTuple):
    """One line of a script with its origin."""

    kind: Literal["directive", "variable", "launch"]
    text: str
    origin: Origin
    place: str = ""  # file:line:column, or the flag; empty where hpcdl itself decided
    note: str = ""  # the reason of a default; the source of a site's value, or that it is unverified


# By option or variable: what no experiment and no site asks for.
_REASONS = {
    "--output": "the log lies in the run folder",
    "-o": "the log lies in the run folder",
    "--error": "standard error goes to the log of standard output",
    "-j": "standard error goes to the log of standard output",
    "-k": "the log is written in place while the job runs",
    "--open-mode": "a job that is requeued goes on with its log",
    "--exclude": "nodes that earlier attempts found to be bad",
    "--requires": "nodes that earlier attempts found to be bad",
    "-R": "nodes that earlier attempts found to be bad",
    "HPCDL_ATTEMPT": "tells the engine which attempt of the run it is",
    "OMP_NUM_THREADS": "as many threads as a rank has cores",
    "MPIR_CVAR_ENABLE_HEAVY_YIELD": "ranks share cores, and MPICH would poll without end",
}


def explain(script: str, job: Job, asked: Document, template: Template) -> list[Line]:
    """The directives, the variables and the launch of a script, each with its origin.

    Args:
        script: as rendered for ``job``.
        job: what is submitted.
        asked: the experiment file with the changes of the command line.
        template: what the script was rendered from.
    """
    return [
        *_directives(script, job, asked, template),
        *_variables(job, asked),
        _of_site(Line("launch", shlex.join(launch.command(job)), site("launch.launcher")), job),
    ]


def head(script: str, prefix: str) -> list[str]:
    """The lines of a script that its scheduler reads: those before the first command."""
    lines = []
    for line in script.split("\n"):
        if line and not line.startswith("#"):
            break
        if prefix and line.startswith(f"{prefix} "):
            lines.append(line)
    return lines


def _directives(script: str, job: Job, asked: Document, template: Template) -> Iterator[Line]:
    backend = scheduler(job.site.scheduler.kind)
    known = {f"{backend.PREFIX} {directive.text}": directive for directive in backend.directives(job)}
    for text in head(script, backend.PREFIX):
        if text in known:
            directive = known[text]
            yield _placed(Line("directive", text, directive.origin), directive.option, job, asked)
        else:
            yield Line("directive", text, Origin("template", backend.TEMPLATE), _in_template(text, template))


def _in_template(text: str, template: Template) -> str:
    """Where the template says it: the line that is the same, if there is one."""
    lines = template.source.split("\n")
    return f"{template.file}:{lines.index(text) + 1}:1" if text in lines else template.file


def _variables(job: Job, asked: Document) -> Iterator[Line]:
    for variable in exported(job):
        text = f"export {variable.name}={shlex.quote(variable.value)}"
        line = Line("variable", text, variable.origin, note=variable.note)
        yield _placed(line, variable.name, job, asked)


def _placed(line: Line, name: str, job: Job, asked: Document) -> Line:
    """``line``, of this option or variable, with the place of what asked for it."""
    kind, key = line.origin
    if kind == "spec":
        return _of_spec(line, asked)
    if kind == "site":
        return _of_site(line, job)
    if kind == "flag":
        return line._replace(place=key)
    return line._replace(note=_REASONS.get(name, "hpcdl's own"))


def _of_spec(line: Line, asked: Document) -> Line:
    key = line.origin.key
    keys = tuple(key.split("."))
    place = asked.place(keys)
    if place.startswith("--"):
        return line._replace(origin=Origin("flag", key), place=place)
    if keys not in asked.places:
        return line._replace(origin=Origin("default", key), note=f"the experiment does not set {key}")
    return line._replace(place=place)


def _of_site(line: Line, job: Job) -> Line:
    # Behind the key of a variable that holds a value stands its name.
    key = line.origin.key.partition(" ")[0]
    found = provenance.field(job.site, key)
    if not found.given:
        return line._replace(origin=Origin("default", key), note=f"site {job.site.name} does not set {key}")
    source = f"source: {found.source}" if found.source and not line.note else ""
    notes = _joined([line.note, "unverified" if found.unverified else "", source])
    return line._replace(place=found.place, note=notes)


def _joined(notes: Iterable[str]) -> str:
    return "; ".join(filter(None, notes))
