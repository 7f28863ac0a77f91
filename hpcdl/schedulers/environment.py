"""Which variables a script exports for the ranks."""

from __future__ import annotations

from hpcdl.errors import UsageError
from hpcdl.schedulers.base import Job
from hpcdl.sites.site import Site

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


def exports(job: Job) -> list[tuple[str, str]]:
    """Names and values, in the order in which they are exported: a later one replaces an earlier.

    Raises:
        UsageError: a name that cannot be exported from a script.
    """
    asked = job.run.experiment.environment
    for name in asked:
        if name in _RESERVED:
            raise UsageError(
                f"environment.{name}: the shell or hpcdl sets this variable itself",
                "take it out of the experiment, or use another name",
            )
    return list({**_defaults(job), **_of_site(job.site, job.run.layout.nodes), **asked}.items())


def _defaults(job: Job) -> dict[str, str]:
    layout, node = job.run.layout, job.site.node(job.run.experiment.resources.queue)
    variables = {"HPCDL_ATTEMPT": str(job.attempt), "OMP_NUM_THREADS": str(layout.cores_per_rank)}
    if job.run.experiment.communication.needs_mpi and layout.ranks_per_node > node.usable_cores:
        # MPICH polls; ranks that share a core would each burn their time slice before the other may run.
        variables[_HEAVY_YIELD] = "1"
    return variables


def _of_site(site: Site, nodes: int) -> dict[str, str]:
    holds = {"always": True, "nodes > 1": nodes > 1, "nodes == 1": nodes == 1}
    return {variable.name: variable.value for variable in site.environment if holds[variable.when]}
