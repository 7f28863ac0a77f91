"""How the ranks of a job are started: one function a launcher, from a job to an argument list."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from hpcdl.errors import SiteError
from hpcdl.schedulers.base import Job
from hpcdl.schedulers.environment import exports
from hpcdl.sites.site import NodeType, Site

_DEVICE_VARIABLES = {"gpu": "CUDA_VISIBLE_DEVICES", "gcd": "HIP_VISIBLE_DEVICES", "tile": "ZE_AFFINITY_MASK"}
"""Which variable selects devices; devices that are not named are cores."""

_LOCAL_RANK_VARIABLES = {
    "fork": "LOCAL_RANK",
    "srun": "SLURM_LOCALID",
    "mpiexec-pals": "PALS_LOCAL_RANKID",
    "mpiexec-hydra": "MPI_LOCALRANKID",
    "mpiexec-openmpi": "OMPI_COMM_WORLD_LOCAL_RANK",
}
"""Where a rank of each launcher reads its index within the node."""

# Run by bash once a rank: two variables, then devices up to "--", then the rank's program.
_PICK_DEVICE = (
    'variable=$1 index=$2 devices=(); shift 2; while [ "$1" != -- ]; do devices+=("$1"); shift; done; shift; '
    'export "$variable=${devices[${!index}]}"; exec "$@"'
)


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
    return job.run.experiment.communication.needs_mpi


def _rank(job: Job) -> list[str]:
    """One rank's program."""
    # mpi4py's runner aborts all ranks when one dies of an exception; else the others would wait for ever.
    runner = ["-m", "mpi4py"] if _over_mpi(job) else []
    return [*_devices(job), job.python, *runner, "-m", "hpcdl.engine", str(job.folder)]


def _devices(job: Job) -> list[str]:
    """What sets a rank's visible devices: a program that runs the program after it.

    Not an export in the script: Slurm sets CUDA_VISIBLE_DEVICES anew in every task.
    """
    launch, node = job.site.launch, job.site.node(job.run.experiment.resources.queue)
    variable = _DEVICE_VARIABLES.get(node.device.kind)
    order = _order(job, node)
    if variable is None:
        return []
    if launch.gpu_visibility == "one_per_task":
        if _gpus_per_task(job.site):
            return []
        local_rank = _LOCAL_RANK_VARIABLES["mpiexec-hydra" if starts_mpiexec_here(job) else launch.launcher]
        return ["bash", "-c", _PICK_DEVICE, "bash", variable, local_rank, *map(str, order), "--"]
    if launch.device_order:
        return ["env", f"{variable}={','.join(map(str, order))}"]
    return []


def _order(job: Job, node: NodeType) -> list[int]:
    """The device of each local rank.

    Devices that were asked for one by one are renumbered from 0 in the job, so only their order is kept.
    """
    order, ranks = job.site.launch.device_order or list(range(node.devices)), job.run.layout.ranks_per_node
    if job.site.scheduler.gpu_request == "none":
        return order[:ranks]
    return [device for device in order if device < ranks]


def starts_mpiexec_here(job: Job) -> bool:
    """Whether mpiexec starts ranks on the machine one is on."""
    return job.site.launch.launcher == "fork" and _over_mpi(job)


def _gpus_per_task(site: Site) -> bool:
    """Whether srun itself gives each task its device."""
    return (
        site.launch.launcher == "srun"
        and site.scheduler.gpu_request != "none"
        and "--gpus-per-task" not in site.scheduler.forbidden
    )


def gpu_request(site: Site, per_node: int) -> list[str]:
    """How Slurm is asked for ``per_node`` devices a node, as an option; nothing where nodes come with theirs.

    Raises:
        SiteError: a typed request without a type.
    """
    kind, gpu_type = site.scheduler.gpu_request, site.scheduler.gpu_type
    if kind == "gres-typed" and gpu_type is None:
        raise SiteError(f"site {site.name}: scheduler.gpu_request gres-typed needs scheduler.gpu_type")
    spellings = {
        "gpus-per-node": [f"--gpus-per-node={per_node}"],
        "gres": [f"--gres=gpu:{per_node}"],
        "gres-typed": [f"--gres=gpu:{gpu_type}:{per_node}"],
        "none": [],
    }
    return spellings[kind]


def _srun(job: Job) -> list[str]:
    layout, launch = job.run.layout, job.site.launch
    one_each = launch.gpu_visibility == "one_per_task" and _gpus_per_task(job.site)
    return [
        "srun",
        # Without it the other ranks wait in a collective until the walltime.
        "--kill-on-bad-exit=1",
        "--label",
        f"--nodes={layout.nodes}",
        f"--ntasks={layout.ranks}",
        f"--ntasks-per-node={layout.ranks_per_node}",
        # Slurm 22.05 to 23.02 do not take it from the job (CHANGELOG of SchedMD/slurm, slurm-22.05).
        f"--cpus-per-task={layout.cores_per_rank}",
        *(["--gpus-per-task=1"] if one_each else gpu_request(job.site, layout.ranks_per_node)),
        *([f"--gpu-bind={launch.gpu_bind}"] if launch.gpu_bind else []),
        *([f"--cpu-bind={launch.cpu_bind}"] if launch.cpu_bind else []),
        *([f"--mpi={launch.mpi}"] if launch.mpi and _over_mpi(job) else []),
        *_arguments(job),
    ]


def _fork(job: Job) -> list[str]:
    return ["mpiexec", "-n", str(job.run.layout.ranks), *_arguments(job)] if _over_mpi(job) else []


def _pals(job: Job) -> list[str]:
    layout = job.run.layout
    binding = job.site.launch.cpu_bind or "depth"
    return [
        *("mpiexec", "-n", str(layout.ranks), "--ppn", str(layout.ranks_per_node)),
        *("--depth", str(layout.cores_per_rank), "--cpu-bind", binding, *_arguments(job)),
    ]


def _hydra(job: Job) -> list[str]:
    layout, binding = job.run.layout, job.site.launch.cpu_bind
    return [
        *("mpiexec", "-n", str(layout.ranks), "-ppn", str(layout.ranks_per_node)),
        *(("-bind-to", binding) if binding else ()),
        *_arguments(job),
    ]


def _openmpi(job: Job) -> list[str]:
    layout, binding = job.run.layout, job.site.launch.cpu_bind
    # PE: cores a rank. Ranks on other nodes see only the variables that are named.
    return [
        *("mpiexec", "-n", str(layout.ranks)),
        *("--map-by", f"ppr:{layout.ranks_per_node}:node:PE={layout.cores_per_rank}"),
        *(("--bind-to", binding) if binding else ()),
        *(word for name, _ in exports(job) for word in ("-x", name)),
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
}
