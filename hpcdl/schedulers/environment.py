"""Which variables a script exports for the ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from hpcdl.errors import SiteError, UsageError
from hpcdl.schedulers.base import Job, Origin
from hpcdl.schedulers.binding import cray_interfaces, threads
from hpcdl.schedulers.directives import site, spec
from hpcdl.sites.conditions import Known, holds

ATTEMPT = "HPCDL_ATTEMPT"
"""Tells the ranks which attempt of the run they are."""

_HEAVY_YIELD = "MPIR_CVAR_ENABLE_HEAVY_YIELD"

# bash computes or forbids these (bash(1), Shell Variables), so an export would fail or change the script's
# own meaning; the last line is what every rank has a value of its own for.
_RESERVED = frozenset(
    """
    BASHOPTS BASHPID BASH_ALIASES BASH_ARGC BASH_ARGV BASH_ARGV0 BASH_CMDS BASH_COMMAND BASH_LINENO
    BASH_REMATCH BASH_SOURCE BASH_SUBSHELL BASH_VERSINFO BASH_XTRACEFD COMP_WORDBREAKS DIRSTACK
    EPOCHREALTIME EPOCHSECONDS EUID FUNCNAME GROUPS HISTCMD IFS LINENO OPTIND PIPESTATUS POSIXLY_CORRECT
    PPID PWD OLDPWD RANDOM SECONDS SHELLOPTS SHLVL SRANDOM TMOUT UID _
    HPCDL_ATTEMPT RANK LOCAL_RANK WORLD_SIZE
    """.split()  # noqa: SIM905 - a list of forty words reads better so
)

_OF_SCRIPT = "hpcdl_"
"""What the script's own variables and functions begin with."""


class Exported(NamedTuple):
    """One variable of the ranks, and why it is there."""

    name: str
    value: str
    origin: Origin
    note: str = ""  # of a site's variable: its condition, its reason and its source


def exports(job: Job) -> list[tuple[str, str]]:
    """Names and values, in the order in which they are exported.

    Raises:
        UsageError, SiteError: a name that cannot be exported from a script.
    """
    return [(variable.name, variable.value) for variable in exported(job)]


def _is_taken(name: str) -> bool:
    return name in _RESERVED or name.startswith(_OF_SCRIPT)


def exported(job: Job) -> list[Exported]:
    """Every variable of the script with its origin: spec replaces site, and site replaces default.

    Secrets are not among them: neither a spec nor a site may hold one.

    Raises:
        UsageError, SiteError: a name that cannot be exported from a script.
    """
    asked = job.run.experiment.environment
    for name in asked:
        if _is_taken(name):
            raise UsageError(
                f"environment.{name}: the shell or hpcdl sets this variable itself",
                "take it out of the experiment, or use another name",
            )
    of_spec = (Exported(name, value, spec(f"environment.{name}")) for name, value in asked.items())
    every = [*_defaults(job), *_of_site(job), *of_spec]
    return list({variable.name: variable for variable in every}.values())


def _defaults(job: Job) -> Iterable[Exported]:
    layout, node = job.run.layout, job.site.node(job.run.experiment.resources.queue)
    yield Exported(ATTEMPT, str(job.attempt), Origin("default"))
    yield Exported("OMP_NUM_THREADS", str(threads(job)), Origin("default"))
    if job.run.experiment.needs_mpi and layout.ranks_per_node > node.usable_cores:
        # MPICH polls; ranks that share a core would each burn their time slice before the other may run.
        yield Exported(_HEAVY_YIELD, "1", Origin("default"))
    for name, value in cray_interfaces(job).items():
        yield Exported(name, value, site("launch.nic_bind"))


def _of_site(job: Job) -> Iterable[Exported]:
    for index, variable in enumerate(job.site.environment):
        if _is_taken(variable.name):
            place = job.site.place("environment", index, "name")
            raise SiteError(f"{place}: the shell or hpcdl sets {variable.name} itself", "take it out")
        if holds(variable.when, _known(job)):
            condition = "" if variable.when == "always" else f"when {variable.when}"
            notes = "; ".join(filter(None, (condition, variable.why, variable.source)))
            yield Exported(variable.name, variable.value, site(f"environment.{index}"), notes)


def undecided(job: Job) -> list[str]:
    """Variables of the site that are left out because nobody knows whether they hold: which, and why."""
    return [
        f"{job.site.place('environment', index, 'when')}: {variable.name} is left out: {variable.when} asks "
        f"for a version that cannot be read here from {job.python}"
        for index, variable in enumerate(job.site.environment)
        if holds(variable.when, _known(job)) is None
    ]


def _known(job: Job) -> Known:
    vendor = job.site.node(job.run.experiment.resources.queue).device.vendor
    return Known(job.run.layout.nodes, vendor, job.versions)
