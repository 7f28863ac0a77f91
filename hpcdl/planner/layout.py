"""Where the ranks of a job go: nodes, ranks a node and cores a rank, checked against the site's limits.

A refusal begins with the place of what was asked, if a file asked it, and ends with the place of the limit.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from hpcdl.errors import InfeasibleError, SiteError, UsageError
from hpcdl.sites.access import Partition
from hpcdl.sites.node import NodeType
from hpcdl.sites.site import Site
from hpcdl.spec.job import Layout, Resources
from hpcdl.spec.load import Document
from hpcdl.units import format_walltime, parse_walltime


@dataclass(frozen=True)
class _Job:
    """What is asked of a site, with the way in that it means."""

    resources: Resources
    site: Site
    asked: Document | None  # the file that asks, where there is one
    key: str
    partition: Partition

    @property
    def node(self) -> NodeType:
        return self.site.nodes[self.partition.node]

    @property
    def size(self) -> str:
        """Which key says how large the job is."""
        return "gpus" if self.resources.gpus is not None else "nodes"

    def at(self, key: str) -> str:
        return _place(self.asked, "resources", key)

    def limit(self, *keys: str | int) -> str:
        """Where a limit of the partition stands, in parentheses."""
        return f"({self.site.place('partitions', self.key, *keys)})"


def _place(asked: Document | None, *keys: str) -> str:
    """What a message about these keys begins with: the place of their value, or nothing."""
    return f"{asked.place(keys)}: " if asked else ""


def _job(resources: Resources, site: Site, asked: Document | None) -> _Job:
    return _Job(resources, site, asked, *find_partition(resources.queue, site, asked))


def layout(
    resources: Resources,
    site: Site,
    asked: Document | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Layout:
    """Where the ranks of a job go that the site would take.

    Args:
        resources: how much of the machine.
        site: the machine.
        asked: the experiment file, for the places of its values in messages.
        environment: where an account may be.

    Raises:
        UsageError: an unknown queue, or an account that the site demands and nobody gave.
        InfeasibleError: more than a node or the queue has, or a longer or shorter walltime than it
            allows.
    """
    job = _job(resources, site, asked)
    _check_account(job, environment)
    places = spread(resources, site, asked)
    _check_nodes(job, places.nodes)
    _check_walltime(job, places.nodes)
    _check_least_walltime(job)
    return places


def spread(resources: Resources, site: Site, asked: Document | None = None) -> Layout:
    """Ranks spread evenly over nodes, whatever the queue's limits; one device if nothing is asked for.

    Raises:
        UsageError: an unknown queue.
        InfeasibleError: more devices a node than there are, or more nodes than the one there is.
        SiteError: several nodes without a network between them.
    """
    job = _job(resources, site, asked)
    nodes, ranks_per_node = _count(job)
    if nodes > 1:
        _check_joined(job, nodes, ranks_per_node)
    cores = _cores(job.node, job.partition, ranks_per_node)
    return Layout(nodes=nodes, ranks_per_node=ranks_per_node, cores_per_rank=cores)


def _check_joined(job: _Job, nodes: int, ranks_per_node: int) -> None:
    """Refuse several nodes where there is one, or nothing between them."""
    node, site, ranks = job.node, job.site, nodes * ranks_per_node
    if job.partition.max_nodes == 1:
        raise InfeasibleError(
            f"{job.at(job.size)}{ranks} devices are asked for, but queue {job.key} of site {site.name} is "
            f"one node with {node.devices} ({node.device.model}) {job.limit('max_nodes')}",
            _roomier(ranks, site) or f"ask for at most --gpus {node.devices}",
        )
    if not node.links.inter_node:
        where = site.place("nodes", job.partition.node, "links")
        raise SiteError(
            f"site {site.name} states no network between nodes, but this job needs {nodes} of them ({where})",
            f"set nodes.{job.partition.node}.links.nic_bandwidth in its site file, or ask for fewer devices",
        )


def _roomier(ranks: int, site: Site) -> str | None:
    """Queues that hold so many ranks on one node, as advice."""
    fitting = [key for key, other in site.partitions.items() if site.nodes[other.node].devices >= ranks]
    settings = " or ".join(f"--set resources.queue={key}" for key in fitting)
    return f"a node of another queue has enough: {settings}" if fitting else None


def find_partition(queue: str | None, site: Site, asked: Document | None = None) -> tuple[str, Partition]:
    """The partition that ``queue`` names by its key or by the scheduler's own name; None: the default.

    Raises:
        UsageError: there is none, with the closest names.
    """
    with suppress(KeyError):
        return site.partition(queue)
    close = difflib.get_close_matches(queue or "", site.partitions, n=3, cutoff=0.4)
    advice = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(site.partitions)}"
    raise UsageError(
        f"{_place(asked, 'resources', 'queue')}resources.queue: site {site.name} has no queue {queue!r}; "
        f"{advice} ({site.place('partitions')})"
    )


def check_precision(precision: str, queue: str | None, site: Site, asked: Document | None = None) -> None:
    """Refuse a precision that the devices of a queue do not compute in.

    Raises:
        UsageError: with the precisions that they know, or an unknown queue.
    """
    kind = find_partition(queue, site, asked)[1].node
    device = site.nodes[kind].device
    if precision not in device.peak_tflops:
        where = site.place("nodes", kind, "device", "peak_tflops")
        raise UsageError(
            f"{_place(asked, 'training', 'precision')}training.precision {precision} is not supported by "
            f"{device.model} ({where})",
            f"choose {' or '.join(device.peak_tflops)}, or a queue with other devices",
        )


def _count(job: _Job) -> tuple[int, int]:
    resources, devices = job.resources, job.node.devices
    if resources.gpus is None:
        return (1, 1) if resources.nodes is None else (resources.nodes, devices)
    nodes = resources.nodes or _fewest_nodes(resources.gpus, devices)
    ranks_per_node = resources.gpus // nodes
    if ranks_per_node > devices:
        where = job.site.place("nodes", job.partition.node, "devices")
        raise InfeasibleError(
            f"{job.at('gpus')}resources: gpus {resources.gpus} on nodes {nodes} is {ranks_per_node} a node, "
            f"but queue {job.key} has {devices} devices a node ({where})",
            f"ask for at least {-(-resources.gpus // devices)} nodes",
        )
    return nodes, ranks_per_node


def _fewest_nodes(gpus: int, devices: int) -> int:
    """The fewest nodes over which ``gpus`` ranks spread evenly."""
    return gpus // max(ranks for ranks in range(1, devices + 1) if gpus % ranks == 0)


def _check_account(job: _Job, environment: Mapping[str, str]) -> None:
    site, scheduler = job.site, job.site.scheduler
    if "account" not in scheduler.mandatory or job.resources.account:
        return
    variable = scheduler.account_variable
    if not variable or not environment.get(variable):
        advice = f"set resources.account, or the variable {variable}" if variable else "set resources.account"
        raise UsageError(
            f"{job.at('account')}resources.account: site {site.name} takes no job without an account "
            f"({site.place('scheduler', 'mandatory')})",
            advice,
        )


def _check_nodes(job: _Job, nodes: int) -> None:
    fewest, most = job.partition.min_nodes, job.partition.max_nodes
    if nodes < fewest:
        raise InfeasibleError(
            f"{job.at(job.size)}queue {job.key} takes jobs of at least {fewest} nodes, but this one has "
            f"{nodes} {job.limit('min_nodes')}",
            _other_queues(nodes, job.site),
        )
    if most is not None and nodes > most:
        raise InfeasibleError(
            f"{job.at(job.size)}queue {job.key} takes jobs of at most {most} nodes, but this one needs "
            f"{nodes} {job.limit('max_nodes')}",
            _other_queues(nodes, job.site),
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


def _check_walltime(job: _Job, nodes: int) -> None:
    limit, asked = job.partition.walltime_limit(nodes), job.resources.walltime
    if limit is not None and parse_walltime(asked) > limit.seconds:
        raise InfeasibleError(
            f"{job.at('walltime')}resources.walltime {asked} is over the {format_walltime(limit.seconds)} "
            f"that queue {job.key} allows {nodes} {'node' if nodes == 1 else 'nodes'} "
            f"{job.limit('walltime', job.partition.walltime.index(limit), 'limit')}",
            "ask for less and resume the run afterwards, or choose another queue",
        )


def _check_least_walltime(job: _Job) -> None:
    least, asked = job.partition.min_walltime, job.resources.walltime
    if least is not None and parse_walltime(asked) < parse_walltime(least):
        raise InfeasibleError(
            f"{job.at('walltime')}resources.walltime {asked} is under the {least} that a job in queue "
            f"{job.key} must ask for {job.limit('min_walltime')}",
            "ask for more; a job that is done sooner ends sooner",
        )


def _cores(node: NodeType, partition: Partition, ranks_per_node: int) -> int:
    """A rank's cores: an even part of the node; on a shared GPU node only the part that its device brings."""
    parts = node.devices if partition.shared and node.device.kind != "cpu" else ranks_per_node
    return max(1, node.usable_cores // max(parts, ranks_per_node))
