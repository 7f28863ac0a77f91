"""Where each rank of a node computes: its device, the cores and the network interface near that device.

Binding means the same on every node, so everything here goes by local rank. Cores are numbered as the kernel
numbers the first hardware thread of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from hpcdl.errors import SiteError
from hpcdl.schedulers.base import Job
from hpcdl.sites.bindings import bound_cpus
from hpcdl.sites.node import Cores, NodeType, parse_cores
from hpcdl.units import ranges

NEAR = "near-device"

_DEVICE_VARIABLES = {
    "nvidia": "CUDA_VISIBLE_DEVICES",
    # Not ROCR_VISIBLE_DEVICES, which Slurm sets: this one counts within that.
    "amd": "HIP_VISIBLE_DEVICES",
    "intel": "ZE_AFFINITY_MASK",
}
"""Which variable selects and orders devices; those of nobody are cores."""

_LOCAL_RANK_VARIABLES = {
    "fork": "LOCAL_RANK",
    "srun": "SLURM_LOCALID",
    "mpiexec-pals": "PALS_LOCAL_RANKID",
    "mpiexec-hydra": "MPI_LOCALRANKID",
    "mpiexec-openmpi": "OMPI_COMM_WORLD_LOCAL_RANK",
    "pbsdsh": "LOCAL_RANK",
    "flux-run": "FLUX_TASK_LOCAL_ID",
    "jsrun": "JSM_NAMESPACE_LOCAL_RANK",
}
"""Where a rank of each launcher reads its index within the node."""

_SELF_BOUND = ("fork", "pbsdsh", "mpiexec-openmpi")
"""Launchers that cannot be given a list of cores a rank: there each rank is bound by taskset(1).

Open MPI takes such lists by rank file only, whose relative host names its 4.1 refuses where there is no
allocation and whose option 5.0 renamed; what PE=n gives is as many cores, but not those near a device.
"""

# Run by bash once a rank: the variable of its index, a word a rank with what precedes the program, "--", it.
_PLACE = (
    "set -f; rank=${!1:?$1 is not set, so this rank has no place}; place=(${@:rank + 2:1}); "
    'while [ "$1" != -- ]; do shift; done; exec env "${place[@]}" "${@:2}"'
)


def placed(job: Job, launcher: str) -> list[str]:
    """What sets a rank's devices, cores and network interface: a program that runs the program after it.

    Not an export in the script: Slurm sets CUDA_VISIBLE_DEVICES anew in every task.

    Args:
        job: the job.
        launcher: what starts its ranks, from which each reads its index.

    Raises:
        SiteError: the site wants ranks bound by what its file does not say.
    """
    columns = [column for column in (_devices(job), _interfaces(job), _own_cores(job)) if column]
    rows = [" ".join(row) for row in zip(*columns, strict=True)]
    if len(set(rows)) < 2:
        return ["env", *rows[0].split()] if rows else []
    return ["bash", "-c", _PLACE, "bash", _LOCAL_RANK_VARIABLES[launcher], *rows, "--"]


def _node(job: Job) -> NodeType:
    return job.site.node(job.run.experiment.resources.queue)


def has_gpus(job: Job) -> bool:
    """Whether ranks compute on devices that somebody must hand out."""
    return _node(job).device.vendor in _DEVICE_VARIABLES


def order(job: Job) -> list[int]:
    """The device of each local rank.

    Devices that were asked for one by one are renumbered from 0 in the job, so only their order is kept.

    Raises:
        SiteError: the site's order is none of this kind of node.
    """
    every, ranks = list(range(_node(job).devices)), job.run.layout.ranks_per_node
    wanted = job.site.launch.device_order or every
    if sorted(wanted) != every:
        key = job.site.partition(job.run.experiment.resources.queue)[1].node
        raise SiteError(
            f"{job.site.place('launch', 'device_order')}: launch.device_order {wanted} must name each of the "
            f"{len(every)} devices of nodes.{key} once",
            f"write the numbers 0 to {len(every) - 1} in the order of local ranks, or leave it out",
        )
    if job.site.scheduler.gpu_request == "none":
        return wanted[:ranks]
    return [device for device in wanted if device < ranks]


def given_by_launcher(job: Job) -> bool:
    """Whether the launcher itself gives each rank its device, and shows it no other."""
    site = job.site
    if site.launch.launcher in ("flux-run", "jsrun"):
        return site.launch.gpu_visibility == "one_per_task"
    return (
        site.launch.launcher == "srun"
        and site.launch.gpu_visibility == "one_per_task"
        and site.launch.gpu_bind != "none"
        and site.scheduler.gpu_request != "none"
        and "--gpus-per-task" not in site.scheduler.forbidden
    )


def gpu_bind(job: Job) -> str | None:
    """What srun or flux is told of devices: the site's words, else what visibility and order ask for."""
    launch = job.site.launch
    if launch.launcher == "flux-run":
        return _gpu_affinity(job)
    if launch.gpu_bind:
        return launch.gpu_bind
    if given_by_launcher(job):
        if launch.device_order:
            return f"map_gpu:{_joined(order(job))}"
        # To a task that asks for a device of a type, Slurm 22.05 shows none unless it is told so.
        typed = job.site.gpu_type(job.run.experiment.resources.queue)
        return "per_task:1" if typed else None
    if job.site.scheduler.gpu_request == "gpus-per-task":
        # A device asked for by the task would hide the others from it; so would none, in Slurm 22.05 all.
        return f"mask_gpu:{hex((1 << job.run.layout.ranks_per_node) - 1)}"
    return None


def _gpu_affinity(job: Job) -> str | None:
    if not (given_by_launcher(job) and has_gpus(job)):
        return None
    return f"map:{';'.join(map(str, order(job)))}" if job.site.launch.device_order else "per-task"


def _devices(job: Job) -> list[str]:
    variable = _DEVICE_VARIABLES.get(_node(job).device.vendor)
    if variable is None or given_by_launcher(job):
        return []
    if job.site.launch.gpu_visibility == "one_per_task":
        return [f"{variable}={device}" for device in order(job)]
    if job.site.launch.device_order:
        return [f"{variable}={_joined(order(job))}"] * job.run.layout.ranks_per_node
    return []


def _which_devices(job: Job) -> list[int]:
    """The device of each local rank as the site file numbers them; none where only the scheduler will know.

    Of a node that is shared, or of which fewer devices are asked for than it has, the job gets any.
    """
    partition = job.site.partition(job.run.experiment.resources.queue)[1]
    whole = not partition.shared and job.site.scheduler.gpu_request == "none"
    return order(job) if whole or job.run.layout.ranks_per_node == _node(job).devices else []


def near_cores(job: Job) -> list[Cores]:
    """The cores of each local rank, near its device; none where the site does not ask or nobody can know.

    Raises:
        SiteError: the site asks for it and does not say which cores are near.
    """
    if job.site.launch.cpu_bind != NEAR:
        return []
    lists = _near(job, "device_cores", ("launch", "cpu_bind"))
    return _shares([parse_cores(lists[device]) for device in _which_devices(job)])


def _near(job: Job, name: str, asked: tuple[str, str]) -> list[Any]:
    """What is near each device, which ``asked`` of the site needs."""
    entries: list[Any] = getattr(_node(job), name)
    if not entries:
        key, setting = job.site.partition(job.run.experiment.resources.queue)[1].node, ".".join(asked)
        raise SiteError(
            f"{job.site.place(*asked)}: {setting} needs nodes.{key}.{name}, which is not there",
            f"add nodes.{key}.{name} to the site file, one entry a device, or take out {setting}",
        )
    return entries


def _shares(lists: list[Cores]) -> list[Cores]:
    """``lists``, but of the same list each of the ranks that have it gets an even part."""
    shares = []
    for rank, cores in enumerate(lists):
        mates = [other for other, theirs in enumerate(lists) if theirs == cores]
        size, seat = len(cores) // len(mates), mates.index(rank)
        shares.append(cores[seat * size : (seat + 1) * size] if size else cores)
    return shares


def threads(job: Job) -> int:
    """Threads that a rank can run at full speed: its cores."""
    return min([job.run.layout.cores_per_rank, *map(len, near_cores(job))])


def cpu_bind(job: Job) -> str | None:
    """What the launcher is told of cores: the site's words, or the cores near each rank's device in its own.

    Raises:
        SiteError: the launcher has no words for it, the site does not say which cores are near, or its own
            words name a core that jobs do not get.
    """
    launch = job.site.launch
    if launch.cpu_bind != NEAR:
        _refuse_reserved(job, launch.cpu_bind or "")
        return launch.cpu_bind
    cores = near_cores(job)
    return _SPELLINGS[launch.launcher](cores) if cores else None


def _refuse_reserved(job: Job, binding: str) -> None:
    node = _node(job)
    with suppress(ValueError):  # what is no mask is refused by the launcher, in its words
        taken = {cpu % node.cores for cpus in bound_cpus(binding) for cpu in cpus} & set(node.reserved_cores)
        if taken:
            raise SiteError(
                f"{job.site.place('launch', 'cpu_bind')}: {binding!r} names reserved core {ranges(taken)}; "
                f"jobs do not get it",
                "leave it out, or let near-device make the binding",
            )


def _own_cores(job: Job) -> list[str]:
    bound = near_cores(job) if job.site.launch.launcher in _SELF_BOUND else []
    return [f"taskset -c {ranges(cores)}" for cores in bound]


def _masks(cores: list[Cores]) -> str:
    return "mask_cpu:" + ",".join(hex(sum(1 << core for core in own)) for own in cores)


def _lists(cores: list[Cores]) -> str:
    return "list:" + ":".join(map(ranges, cores))


def _users(cores: list[Cores]) -> str:
    return "user:" + ",".join("+".join(map(str, own)) for own in cores)


def _map(cores: list[Cores]) -> str:
    return "map:" + ";".join(map(ranges, cores))


def _packed(cores: list[Cores]) -> str:
    """A resource set has the cores near its device already: its tasks are packed on them."""
    return f"packed:{min(map(len, cores))}"


_SPELLINGS: dict[str, Callable[[list[Cores]], str]] = {
    "srun": _masks,
    "mpiexec-pals": _lists,
    "mpiexec-hydra": _users,
    "mpiexec-openmpi": lambda _: "none",
    "flux-run": _map,
    "jsrun": _packed,
}
"""Cores of each local rank in the words of --cpu-bind, -bind-to, --bind-to, -o cpu-affinity= and --bind."""


def _near_nics(job: Job) -> list[int]:
    nics: list[int] = _near(job, "device_nics", ("launch", "nic_bind"))
    return [nics[device] for device in _which_devices(job)]


def cray_interfaces(job: Job) -> dict[str, str]:
    """Variables that tell Cray MPICH the network interface of each local rank, intro_mpi(3).

    Raises:
        SiteError: the site asks for it and does not say which interfaces are near.
    """
    if job.site.launch.nic_bind != "cray-mpich":
        return {}
    near = _near_nics(job)
    ranks = {nic: [rank for rank, own in enumerate(near) if own == nic] for nic in sorted(set(near))}
    mapping = "; ".join(f"{nic}:{ranges(own)}" for nic, own in ranks.items())
    return {"MPICH_OFI_NIC_POLICY": "USER", "MPICH_OFI_NIC_MAPPING": mapping} if ranks else {}


def _interfaces(job: Job) -> list[str]:
    """UCX is told by a variable of each rank. NCCL finds the NIC near its device without being told."""
    if job.site.launch.nic_bind != "ucx":
        return []
    names = _node(job).links.nic_names
    near = _near_nics(job)
    if len(names) <= max(near, default=-1):
        key = job.site.partition(job.run.experiment.resources.queue)[1].node
        raise SiteError(
            f"{job.site.place('launch', 'nic_bind')}: launch.nic_bind ucx needs a name for each NIC, but "
            f"nodes.{key}.links.nic_names has {len(names)}",
            f"give nodes.{key}.links.nic_names as ucx_info -d prints them, e.g. mlx5_0",
        )
    return [f"UCX_NET_DEVICES={names[nic]}{'' if ':' in names[nic] else ':1'}" for nic in near]


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
