"""Every difference between a site file and the machine. Pure.

An error is what makes a job fail that the file allows: more than the machine has, or a name that it does not
know. A warning is what the file withholds, or does not know of.
"""

from __future__ import annotations

import re
from collections import Counter

from hpcdl.sites.access import Partition
from hpcdl.sites.findings import Desk, Finding
from hpcdl.sites.node import NodeType
from hpcdl.sites.site import Site
from hpcdl.survey.seen import Host, Machine, Queue
from hpcdl.units import format_bytes, format_walltime, parse_bytes, parse_walltime

# A node's memory is a little less than its modules': firmware and kernel keep a part.
_MEMORY_TOLERANCE = 0.1
_FEATURE = re.compile(r"[\w.:@+-]+")
_OF_ANY = ("qos", "implicit")
"""Kinds of partitions that give nodes of any queue; their limits stand in the accounting, or nowhere."""


def compare(site: Site, machine: Machine) -> list[Finding]:
    """Where ``site`` and ``machine`` differ, errors first."""
    desk = Desk(site)
    if site.scheduler.kind != machine.kind:
        desk.error(
            ("scheduler", "kind"),
            f"scheduler.kind is {site.scheduler.kind}, but this machine runs {machine.kind}",
            "is this the file of another machine?",
        )
        return desk.findings
    for key, partition in site.partitions.items():
        hosts = _hosts(desk, key, partition, machine)
        if hosts:
            _compare_hardware(desk, partition.node, hosts, machine)
            _compare_type(desk, key, partition, hosts)
    _compare_names(desk, machine)
    _compare_arrays(desk, machine)
    return sorted(desk.findings, key=lambda finding: finding.severity)


def _hosts(desk: Desk, key: str, partition: Partition, machine: Machine) -> list[Host]:
    """The nodes that a partition of the file gives on the machine, its own limits compared on the way."""
    if partition.kind in _OF_ANY:
        hosts = _constrained(desk, key, partition, list(machine.hosts))
        if hosts and (partition.max_nodes or 0) > len(hosts):
            _compare_nodes(desk, key, partition, len(hosts))
        return hosts
    queue = machine.queue(partition.name or key)
    if queue is None:
        known = ", ".join(each.name for each in machine.queues)
        message = f"the machine has no {partition.kind} {partition.name or key}; it has {known}"
        desk.error(("partitions", key), message, "take it out, or correct its name")
        return []
    hosts = _constrained(desk, key, partition, machine.hosts_of(queue))
    _compare_access(desk, key, partition, queue)
    _compare_walltime(desk, key, partition, queue)
    if not queue.routing:
        _compare_nodes(desk, key, partition, min(queue.max_nodes or len(hosts), len(hosts)))
    return [] if queue.routing else hosts


def _constrained(desk: Desk, key: str, partition: Partition, hosts: list[Host]) -> list[Host]:
    """The nodes with every feature of the constraint; all, where it is more than words joined by ``&``."""
    words = _FEATURE.findall(partition.constraint or "")
    known = {feature for host in hosts for feature in host.shape.features}
    strange = [word for word in words if word not in known]
    if strange:
        desk.error(
            ("partitions", key, "constraint"),
            f"no node has the feature {strange[0]}; there are {', '.join(sorted(known)) or 'none'}",
            "correct the constraint",
        )
        return []
    if (partition.constraint or "") != "&".join(words):
        return hosts
    return [host for host in hosts if host.shape.features >= set(words)]


def _compare_access(desk: Desk, key: str, partition: Partition, queue: Queue) -> None:
    keys = ("partitions", key)
    if not queue.open:
        message = f"{queue.name} takes no jobs now: it is stopped, disabled or down"
        desk.warning(keys, message, "if for good, take it out")
    if partition.routing != queue.routing:
        message = f"routing is {str(partition.routing).lower()}, but {queue.name} is otherwise"
        desk.warning((*keys, "routing"), message, f"set it to {str(queue.routing).lower()}")
    if partition.min_nodes < queue.min_nodes:
        message = f"min_nodes is {partition.min_nodes}, but {queue.name} takes no job below {queue.min_nodes}"
        desk.error((*keys, "min_nodes"), message, f"set it to {queue.min_nodes}")


def _compare_walltime(desk: Desk, key: str, partition: Partition, queue: Queue) -> None:
    if queue.max_seconds is None:
        return
    keys, allowed = ("partitions", key, "walltime"), format_walltime(queue.max_seconds)
    longest = max((parse_walltime(entry.limit) for entry in partition.walltime), default=None)
    if longest is None:
        message = f"no walltime is stated, but {queue.name} allows {allowed}"
        desk.warning(keys, message, f'add walltime: [{{limit: "{allowed}"}}]')
    elif longest != queue.max_seconds:
        note = desk.error if longest > queue.max_seconds else desk.warning
        message = f"walltime is {format_walltime(longest)}, but {queue.name} allows {allowed}"
        note(keys, message, f"set the longest limit to {allowed}")


def _compare_nodes(desk: Desk, key: str, partition: Partition, most: int) -> None:
    keys, stated = ("partitions", key, "max_nodes"), partition.max_nodes
    if stated is not None and stated != most:
        note = desk.error if stated > most else desk.warning
        note(
            keys,
            f"max_nodes is {stated}, but {partition.name or key} gives up to {most}",
            f"set it to {most}",
        )
    elif stated is None and most:
        message = f"max_nodes is not stated, but {partition.name or key} gives up to {most}"
        desk.warning(keys, message, f"set it to {most}")


def _compare_hardware(desk: Desk, key: str, hosts: list[Host], machine: Machine) -> None:
    node, shapes = desk.site.nodes[key], [host.shape for host in hosts]
    if shapes[0].cores is None:
        stated = node.cores * node.threads_per_core
        _compare_number(desk, (key, "cores"), stated, Counter(shape.cpus for shape in shapes))
    else:
        _compare_number(desk, (key, "cores"), node.cores, Counter(shape.cores or 0 for shape in shapes))
        threads = Counter(max(1, shape.cpus // (shape.cores or 1)) for shape in shapes)
        _compare_number(desk, (key, "threads_per_core"), node.threads_per_core, threads)
        _compare_reserved(desk, key, node, max(shape.reserved for shape in shapes))
    if node.device.kind != "cpu" or desk.site.scheduler.gpu_request != "none":
        _compare_number(desk, (key, "devices"), node.devices, Counter(shape.gpus for shape in shapes))
    if machine.counts_memory:
        _compare_memory(desk, key, node, [shape.memory for shape in shapes])


def _compare_number(desk: Desk, keys: tuple[str, str], stated: int, seen: Counter[int]) -> None:
    """One figure of a node type with what the nodes have, of which some may be of another kind."""
    differing = {figure: count for figure, count in seen.items() if figure != stated}
    if not differing:
        return
    counted = ", ".join(
        f"{figure} on {count} node{'s'[: count > 1]}" for figure, count in sorted(differing.items())
    )
    note = desk.error if stated not in seen and stated > max(seen) else desk.warning
    hint = f"set it to {max(differing, key=lambda figure: differing[figure])}, or give the others a node type"
    note(("nodes", *keys), f"{keys[1]} is {stated}, but the scheduler counts {counted}", hint)


def _compare_reserved(desk: Desk, key: str, node: NodeType, reserved: int) -> None:
    stated = len(node.reserved_cores)
    if stated != reserved:
        note = desk.error if stated < reserved else desk.warning
        message = f"{stated} cores are reserved in the file, {reserved} on the machine (CoreSpecCount)"
        note(("nodes", key, "reserved_cores"), message, "name those that jobs do not get")


def _compare_type(desk: Desk, key: str, partition: Partition, hosts: list[Host]) -> None:
    """The type in a request for devices; the scheduler's own where the partition names none."""
    if desk.site.scheduler.gpu_request == "none":
        return
    keys = ("partitions", key, "gpu_type") if partition.gpu_type else ("scheduler", "gpu_type")
    wanted = partition.gpu_type or desk.site.scheduler.gpu_type
    types = {host.shape.gpu_type for host in hosts if host.shape.gpu_type}
    if wanted is not None and wanted not in types:
        message = (
            f"gpu_type is {wanted}, but the nodes have {', '.join(sorted(types)) or 'GPUs without a type'}"
        )
        desk.error(keys, message, "correct it, or take it out where there is one type only")


def _compare_memory(desk: Desk, key: str, node: NodeType, seen: list[int]) -> None:
    stated, least, most = parse_bytes(node.host_memory), min(seen), max(seen)
    if abs(stated - most) > _MEMORY_TOLERANCE * most and abs(stated - least) > _MEMORY_TOLERANCE * least:
        note = desk.error if stated > most else desk.warning
        message = f"host_memory is {format_bytes(stated)}, but the scheduler counts {format_bytes(most)}"
        note(("nodes", key, "host_memory"), message, "state what a job may use")


def _compare_arrays(desk: Desk, machine: Machine) -> None:
    stated, most = desk.site.scheduler.max_array, machine.max_array
    if most is not None and most < 2:
        message = f"the machine takes no arrays of jobs (of at most {most})"
        desk.warning(("scheduler", "max_array"), message, "submit each run by itself there, without --repeat")
    elif most is not None and stated > most:
        message = f"max_array is {stated}, but the machine takes {most}"
        desk.error(("scheduler", "max_array"), message, f"set it to {most}")


def _compare_names(desk: Desk, machine: Machine) -> None:
    """Queues that the file does not name, and the default."""
    named = {partition.name or key for key, partition in desk.site.partitions.items()}
    for queue in machine.queues:
        if queue.name not in named:
            message = f"the machine has {queue.name}, which the file does not name"
            desk.warning(("partitions",), message, "add it, if jobs of hpcdl may go there")
    default = next((queue.name for queue in machine.queues if queue.default), None)
    key, partition = desk.site.partition(None)
    if partition.kind not in _OF_ANY and default not in (None, partition.name or key):
        message = f"default_partition is {key}, but the machine's own default is {default}"
        desk.warning(
            ("default_partition",), message, "hpcdl names its partition in every job; leave it if meant so"
        )
