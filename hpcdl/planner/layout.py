"""Where the ranks of a job go: nodes, ranks a node and cores a rank, checked against the site's limits."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping

from hpcdl.errors import InfeasibleError, SiteError, UsageError
from hpcdl.sites.site import NodeType, Partition, Site
from hpcdl.spec.job import Layout, Resources
from hpcdl.units import format_walltime, parse_walltime


def layout(resources: Resources, site: Site, environment: Mapping[str, str] = os.environ) -> Layout:
    """Where the ranks of a job go that the site would take.

    Raises:
        UsageError: an unknown queue, or an account that the site demands and nobody gave.
        InfeasibleError: more than a node or the queue has, or a longer walltime than it allows.
    """
    key, partition = find_partition(resources.queue, site)
    _check_account(resources, site, environment)
    places = spread(resources, site)
    _check_nodes(places.nodes, key, partition, site)
    _check_walltime(resources, places.nodes, key, partition)
    return places


def spread(resources: Resources, site: Site) -> Layout:
    """Ranks spread evenly over nodes, whatever the queue's limits; one device if nothing is asked for.

    Raises:
        UsageError: an unknown queue.
        InfeasibleError: more devices a node than there are, or more nodes than the one there is.
        SiteError: several nodes without a network between them.
    """
    key, partition = find_partition(resources.queue, site)
    node = site.nodes[partition.node]
    nodes, ranks_per_node = _count(resources, node, key)
    if nodes > 1 and partition.max_nodes == 1:
        raise InfeasibleError(
            f"{nodes * ranks_per_node} devices are asked for, but queue {key} of site {site.name} is one "
            f"node with {node.devices} ({node.device.model})",
            _roomier(nodes * ranks_per_node, site) or f"ask for at most --gpus {node.devices}",
        )
    if nodes > 1 and not node.links.inter_node:
        raise SiteError(
            f"site {site.name} states no network between nodes, but this job needs {nodes} of them",
            f"set nodes.{partition.node}.links.nic_bandwidth in its site file, or ask for fewer devices",
        )
    cores = _cores(node, partition, ranks_per_node)
    return Layout(nodes=nodes, ranks_per_node=ranks_per_node, cores_per_rank=cores)


def _roomier(ranks: int, site: Site) -> str | None:
    """Queues that hold so many ranks on one node, as advice."""
    fitting = [key for key, other in site.partitions.items() if site.nodes[other.node].devices >= ranks]
    settings = " or ".join(f"--set resources.queue={key}" for key in fitting)
    return f"a node of another queue has enough: {settings}" if fitting else None


def find_partition(queue: str | None, site: Site) -> tuple[str, Partition]:
    """The partition that ``queue`` names by its key or by the scheduler's own name; None: the default.

    Raises:
        UsageError: there is none, with the closest names.
    """
    if queue is None or queue in site.partitions:
        return site.partition(queue)
    for key, partition in site.partitions.items():
        if partition.name == queue:
            return key, partition
    close = difflib.get_close_matches(queue, site.partitions, n=3, cutoff=0.4)
    advice = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(site.partitions)}"
    raise UsageError(f"resources.queue: site {site.name} has no queue {queue!r}; {advice}")


def check_precision(precision: str, node: NodeType) -> None:
    """Refuse a precision that the device does not compute in.

    Raises:
        UsageError: with the precisions that it knows.
    """
    known = node.device.peak_tflops
    if precision not in known:
        raise UsageError(
            f"training.precision {precision} is not supported by {node.device.model}",
            f"choose {' or '.join(known)}, or a queue with other devices",
        )


def _count(resources: Resources, node: NodeType, key: str) -> tuple[int, int]:
    if resources.gpus is None:
        return (1, 1) if resources.nodes is None else (resources.nodes, node.devices)
    nodes = resources.nodes or _fewest_nodes(resources.gpus, node.devices)
    ranks_per_node = resources.gpus // nodes
    if ranks_per_node > node.devices:
        raise InfeasibleError(
            f"resources: gpus {resources.gpus} on nodes {nodes} is {ranks_per_node} a node, but queue "
            f"{key} has {node.devices} devices a node",
            f"ask for at least {-(-resources.gpus // node.devices)} nodes",
        )
    return nodes, ranks_per_node


def _fewest_nodes(gpus: int, devices: int) -> int:
    """The fewest nodes over which ``gpus`` ranks spread evenly."""
    return gpus // max(ranks for ranks in range(1, devices + 1) if gpus % ranks == 0)


def _check_account(resources: Resources, site: Site, environment: Mapping[str, str]) -> None:
    scheduler = site.scheduler
    if "account" not in scheduler.mandatory or resources.account:
        return
    variable = scheduler.account_variable
    if not variable or not environment.get(variable):
        advice = f"set resources.account, or the variable {variable}" if variable else "set resources.account"
        raise UsageError(f"resources.account: site {site.name} takes no job without an account", advice)


def _check_nodes(nodes: int, key: str, partition: Partition, site: Site) -> None:
    if nodes < partition.min_nodes:
        raise InfeasibleError(
            f"queue {key} takes jobs of at least {partition.min_nodes} nodes, but this one has {nodes}",
            _other_queues(nodes, site),
        )
    if partition.max_nodes is not None and nodes > partition.max_nodes:
        raise InfeasibleError(
            f"queue {key} takes jobs of at most {partition.max_nodes} nodes, but this one needs {nodes}",
            _other_queues(nodes, site),
        )


def _other_queues(nodes: int, site: Site) -> str:
    fitting = [
        key
        for key, other in site.partitions.items()
        if other.min_nodes <= nodes and (other.max_nodes is None or nodes <= other.max_nodes)
    ]
    if not fitting:
        return f"no queue of site {site.name} takes {nodes} nodes; change resources.gpus or resources.nodes"
    return f"queues that take {nodes} nodes: {', '.join(fitting)}; or change resources.gpus"


def _check_walltime(resources: Resources, nodes: int, key: str, partition: Partition) -> None:
    limit = partition.walltime_limit(nodes)
    if limit is not None and parse_walltime(resources.walltime) > limit:
        raise InfeasibleError(
            f"resources.walltime {resources.walltime} is over the {format_walltime(limit)} that queue {key} "
            f"allows {nodes} {'node' if nodes == 1 else 'nodes'}",
            "ask for less and resume the run afterwards, or choose another queue",
        )


def _cores(node: NodeType, partition: Partition, ranks_per_node: int) -> int:
    """A rank's cores: an even part of the node; on a shared GPU node only the part that its device brings."""
    parts = node.devices if partition.shared and node.device.kind != "cpu" else ranks_per_node
    return max(1, node.usable_cores // max(parts, ranks_per_node))
