"""How the ranks of a job are started: one function a launcher, from a job to an argument list."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from hpcdl.errors import SiteError
from hpcdl.schedulers.base import Job
from hpcdl.schedulers.binding import NEAR, cpu_bind, given_by_launcher, gpu_bind, has_gpus, placed
from hpcdl.schedulers.environment import exports

_LAST_S = 60  # between the end of the first rank and that of the last, where they end together


def forks(job: Job) -> bool:
    """Whether the script itself starts the ranks, as opposed to a launcher that does."""
    return job.site.launch.launcher == "fork" and not _over_mpi(job)


def command(job: Job) -> list[str]:
    """The program that starts all ranks, or one rank where the script forks them.

    Raises:
        SiteError: the site's launcher cannot start this job.
    """
    launcher = job.site.launch.launcher
    if launcher == "fork" and job.run.layout.nodes > 1:
        raise SiteError(
            f"site {job.site.name}: launcher fork starts ranks on one node, not on {job.run.layout.nodes}",
            "ask for fewer GPUs, or for one node",
        )
    return [*_LAUNCHERS[launcher](job), *_rank(job)]


def _over_mpi(job: Job) -> bool:
    return job.run.experiment.needs_mpi


def _rank(job: Job) -> list[str]:
    """One rank's program."""
    # mpi4py's runner aborts all ranks when one dies of an exception; else the others would wait for ever.
    runner = ["-m", "mpi4py"] if _over_mpi(job) else []
    starter = "mpiexec-hydra" if starts_mpiexec_here(job) else job.site.launch.launcher
    return [*placed(job, starter), job.python, *runner, "-m", "hpcdl.engine", str(job.folder)]


def starts_mpiexec_here(job: Job) -> bool:
    """Whether mpiexec starts ranks on the machine one is on."""
    return job.site.launch.launcher == "fork" and _over_mpi(job)


def gpu_request(job: Job) -> list[str]:
    """How Slurm is asked for the job's devices; nothing where nodes come with theirs."""
    nodes, per_node, typed = job.run.layout.nodes, job.run.layout.ranks_per_node, _typed(job)
    spellings = {
        "gpus-per-node": [f"--gpus-per-node={typed}{per_node}"],
        "gpus": [f"--gpus={typed}{per_node * nodes}"],
        "gpus-per-task": [f"--gpus-per-task={typed}1"],
        "gres": [f"--gres=gpu:{typed}{per_node}"],
        "none": [],
    }
    return spellings[job.site.scheduler.gpu_request]


def _typed(job: Job) -> str:
    """What stands before a number of devices."""
    gpu_type = job.site.gpu_type(job.run.experiment.resources.queue)
    return f"{gpu_type}:" if gpu_type else ""


def cpus_per_rank(job: Job) -> int:
    """What Slurm counts as CPUs: the hardware threads of a rank's cores."""
    node = job.site.node(job.run.experiment.resources.queue)
    return job.run.layout.cores_per_rank * node.threads_per_core


def _srun(job: Job) -> list[str]:
    layout, launch = job.run.layout, job.site.launch
    devices, cores = gpu_bind(job), cpu_bind(job)
    # A type that the job names must be named here too: Slurm refuses requests with and without.
    one_each, asked = [f"--gpus-per-task={_typed(job)}1"], gpu_request(job)
    return [
        "srun",
        # Without it the other ranks wait in a collective until the walltime.
        "--kill-on-bad-exit=1",
        # Without it srun waits for ever for the tasks of a node whose slurmstepd was killed; seen in 22.05.
        *([f"--wait={_LAST_S}"] if job.run.experiment.ends_together else []),
        "--label",
        f"--nodes={layout.nodes}",
        f"--ntasks={layout.ranks}",
        f"--ntasks-per-node={layout.ranks_per_node}",
        # Slurm 22.05 to 23.02 do not take it from the job (CHANGELOG of SchedMD/slurm, slurm-22.05).
        f"--cpus-per-task={cpus_per_rank(job)}",
        *(one_each if given_by_launcher(job) else asked),
        *([f"--gpu-bind={devices}"] if devices else []),
        *([f"--cpu-bind={cores}"] if cores else []),
        *([f"--mpi={launch.mpi}"] if launch.mpi and _over_mpi(job) else []),
        *_arguments(job),
    ]


def _without_words(job: Job) -> None:
    """Refuse what a launcher that only starts processes cannot be told.

    Raises:
        SiteError: the site binds cores in a launcher's own words.
    """
    launch = job.site.launch
    if launch.cpu_bind not in (None, NEAR):
        raise SiteError(
            f"{job.site.place('launch', 'cpu_bind')}: launcher {launch.launcher} has no words for cores, "
            f"so {launch.cpu_bind!r} means nothing to it",
            f"give {NEAR}, with the cores of each device in nodes, or take launch.cpu_bind out",
        )


def _fork(job: Job) -> list[str]:
    _without_words(job)
    return ["mpiexec", "-n", str(job.run.layout.ranks), *_arguments(job)] if _over_mpi(job) else []


def _pals(job: Job) -> list[str]:
    layout, cores = job.run.layout, cpu_bind(job)
    # With a list, cores are counted by the list.
    depth = [] if cores and cores.startswith("list:") else ["--depth", str(layout.cores_per_rank)]
    return [
        *("mpiexec", "-n", str(layout.ranks), "--ppn", str(layout.ranks_per_node)),
        *(*depth, "--cpu-bind", cores or "depth", *_arguments(job)),
    ]


def _hydra(job: Job) -> list[str]:
    layout, cores = job.run.layout, cpu_bind(job)
    return [
        *("mpiexec", "-n", str(layout.ranks), "-ppn", str(layout.ranks_per_node)),
        *(("-bind-to", cores) if cores else ()),
        *_arguments(job),
    ]


def _openmpi(job: Job) -> list[str]:
    layout, cores = job.run.layout, cpu_bind(job)
    # PE: cores a rank, by which Open MPI binds; it refuses to be told of another binding as well.
    each = f"ppr:{layout.ranks_per_node}:node" + ("" if cores else f":PE={layout.cores_per_rank}")
    # Ranks on other nodes see only the variables that are named.
    return [
        *("mpiexec", "-n", str(layout.ranks), "--map-by", each),
        *(("--bind-to", cores) if cores else ()),
        *(word for name, _ in exports(job) for word in ("-x", name)),
        *_arguments(job),
    ]


def _pbsdsh(job: Job) -> list[str]:
    """Nothing: on each host, the script forks that host's ranks."""
    _without_words(job)
    machine, here = job.site, job.site.place("launch", "launcher")
    if machine.scheduler.kind != "pbs":
        raise SiteError(
            f"{here}: launcher pbsdsh is part of PBS, and the scheduler is {machine.scheduler.kind}"
        )
    if _over_mpi(job):
        raise SiteError(
            f"{here}: launcher pbsdsh starts no MPI ranks",
            "set communication.transport: dist, or name the machine's mpiexec in launch.launcher",
        )
    if (machine.scheduler.place or "").partition(":")[0] != "scatter":
        raise SiteError(
            f"{machine.place('scheduler', 'place')}: launcher pbsdsh tells ranks apart by their host, so "
            f"each chunk must be on a host of its own",
            "set scheduler.place: scatter",
        )
    return []


def starts_hosts(job: Job) -> bool:
    """Whether the launcher starts the script once a host, and that starts the host's ranks."""
    return job.site.launch.launcher == "pbsdsh"


def processes_per_node(job: Job) -> int:
    """Processes that the launcher itself starts on each node."""
    return 1 if starts_hosts(job) else job.run.layout.ranks_per_node


def step(job: Job) -> str:
    """The template of the step that starts the ranks."""
    if starts_hosts(job):
        return "_pbsdsh.sh.j2"
    return "_fork.sh.j2" if forks(job) else "_command.sh.j2"


def _flux_run(job: Job) -> list[str]:
    layout, devices, cores = job.run.layout, gpu_bind(job), cpu_bind(job)
    whole = job.site.scheduler.gpu_request == "none"
    return [
        *("flux", "run", f"--nodes={layout.nodes}", f"--ntasks={layout.ranks}"),
        f"--cores-per-task={layout.cores_per_rank}",
        *(["--exclusive"] if whole else ["--gpus-per-task=1"]),
        "--label-io",
        # All ranks end when one fails. By default they would also be ended 30 s after one is done.
        *("--setopt=exit-on-error", "--setopt=exit-timeout=none"),
        *([f"--setopt=cpu-affinity={cores}"] if cores else []),
        *([f"--setopt=gpu-affinity={devices}"] if devices else []),
        *_arguments(job),
    ]


def _jsrun(job: Job) -> list[str]:
    layout, launch = job.run.layout, job.site.launch
    # The ranks of a resource set share its devices: a set a rank, or one a node.
    each = layout.ranks_per_node if launch.gpu_visibility == "all" else 1
    sets = layout.ranks_per_node // each
    return [
        # -X: all ranks end when one fails; -d: ranks are numbered node by node.
        *("jsrun", "-X", "1", "--stdio_mode", "prepended", "-d", "packed"),
        *("-n", str(layout.nodes * sets), "-r", str(sets), "-a", str(each)),
        *("-c", str(each * layout.cores_per_rank)),
        *(("-g", str(each)) if has_gpus(job) else ()),
        *("-b", cpu_bind(job) or f"packed:{layout.cores_per_rank}"),
        *(word for name, _ in exports(job) for word in ("-E", name)),
        *_arguments(job),
    ]


def _arguments(job: Job) -> list[str]:
    """The site's further arguments, a line of which may hold several words."""
    return [word for line in job.site.launch.arguments for word in shlex.split(line)]


_LAUNCHERS: dict[str, Callable[[Job], list[str]]] = {
    "fork": _fork,
    "srun": _srun,
    "mpiexec-pals": _pals,
    "mpiexec-hydra": _hydra,
    "mpiexec-openmpi": _openmpi,
    "pbsdsh": _pbsdsh,
    "flux-run": _flux_run,
    "jsrun": _jsrun,
}
