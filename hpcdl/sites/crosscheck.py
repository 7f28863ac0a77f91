"""Whether the values of a site file go together. Pure; what its schema refuses never comes here."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise

from hpcdl.sites.findings import Desk, Finding
from hpcdl.sites.hardware import check_node
from hpcdl.sites.provenance import covers, paths
from hpcdl.sites.recognise import proves_nothing
from hpcdl.sites.site import Site

_GPU_OPTIONS = {
    "gpus-per-node": "--gpus-per-node",
    "gpus": "--gpus",
    "gpus-per-task": "--gpus-per-task",
    "gres": "--gres",
}
_RDMA_DEVICES = ("mlx", "cxi", "hfi", "bnxt", "irdma", "efa", "ibp")


def crosscheck(site: Site) -> list[Finding]:
    """What does not go together in ``site``, errors first."""
    desk = Desk(site)
    for key in site.nodes:
        check_node(desk, key)
    for key in site.partitions:
        _check_partition(desk, key)
        _check_walltime(desk, key)
        _check_network(desk, key)
    _check_forbidden(desk)
    _check_scheduler(desk)
    _check_interface(desk)
    _check_identity(desk)
    _check_provenance(desk)
    return sorted(desk.findings, key=lambda finding: finding.severity)


def _check_partition(desk: Desk, key: str) -> None:
    partition, kind = desk.site.partitions[key], desk.site.scheduler.kind
    if partition.max_nodes is not None and partition.min_nodes > partition.max_nodes:
        desk.error(
            ("partitions", key, "min_nodes"),
            f"min_nodes {partition.min_nodes} is more than max_nodes {partition.max_nodes}: no job fits",
            "correct one of the two",
        )
    if kind != "slurm" and (partition.constraint is not None or partition.kind in ("qos", "implicit")):
        given = "constraint" if partition.constraint is not None else "kind"
        desk.error(
            ("partitions", key, given),
            f"{given} is Slurm's, but scheduler.kind is {kind}",
            "take it out, or correct scheduler.kind",
        )


def _check_walltime(desk: Desk, key: str) -> None:
    """The table goes up: each entry for more nodes than the one before, the last for all."""
    partition = desk.site.partitions[key]
    bounds = [entry.max_nodes or float("inf") for entry in partition.walltime]
    for index, (before, after) in enumerate(pairwise(bounds), start=1):
        if after <= before:
            desk.error(
                ("partitions", key, "walltime", index),
                f"walltime entry {index + 1} is never used: the one before it holds for {before:g} nodes",
                "order the entries by max_nodes, smallest first; only the last may leave it out",
            )
    most = partition.max_nodes or float("inf")
    if bounds and bounds[-1] < most:
        desk.warning(
            ("partitions", key, "walltime", len(bounds) - 1),
            f"no walltime limit is known for more than {bounds[-1]:g} nodes, but max_nodes is {most:g}",
            "add an entry, or leave max_nodes out of the last one",
        )


def _check_network(desk: Desk, key: str) -> None:
    partition = desk.site.partitions[key]
    if partition.max_nodes != 1 and not desk.site.nodes[partition.node].links.inter_node:
        desk.error(
            ("nodes", partition.node, "links"),
            f"partition {key} gives several nodes, but between them links.nics × nic_bandwidth is 0 GB/s",
            f"state nic_bandwidth in GB/s, or set partitions.{key}.max_nodes to 1",
        )


def _check_forbidden(desk: Desk) -> None:
    """What a site forbids it cannot ask for itself."""
    scheduler = desk.site.scheduler
    forbidden = {entry.split("=")[0].strip() for entry in scheduler.forbidden}
    asked = _GPU_OPTIONS.get(scheduler.gpu_request)
    if scheduler.kind == "slurm" and asked in forbidden:
        desk.error(
            ("scheduler", "gpu_request"),
            f"gpu_request {scheduler.gpu_request} writes {asked}, which scheduler.forbidden names",
            "choose another gpu_request (none, where whole nodes come with their devices)",
        )
    lists = {("scheduler", "directives"): scheduler.directives} | {
        ("partitions", key, "directives"): partition.directives
        for key, partition in desk.site.partitions.items()
    }
    for keys, lines in lists.items():
        for index, line in enumerate(lines):
            option = re.split(r"[=\s]", line.strip())[0]
            if option in forbidden:
                message = f"{line!r} is a directive of every job, but scheduler.forbidden names {option}"
                desk.error((*keys, index), message, "take it out of one of the two")


def _check_scheduler(desk: Desk) -> None:
    scheduler = desk.site.scheduler
    if scheduler.gpu_type is not None and scheduler.gpu_request == "none":
        desk.warning(
            ("scheduler", "gpu_type"),
            f"gpu_type {scheduler.gpu_type} is never used, as gpu_request is none",
            "set gpu_request, e.g. to gres, or take gpu_type out",
        )
    for field in ("select", "place"):
        if getattr(scheduler, field) and scheduler.kind != "pbs":
            message = f"{field} is PBS's, but scheduler.kind is {scheduler.kind}: it is never used"
            desk.warning(("scheduler", field), message, "take it out, or correct scheduler.kind")
    for index, line in enumerate(scheduler.directives):
        _check_words(desk, ("scheduler", "directives", index), line)


def _check_words(desk: Desk, keys: tuple[str | int, ...], line: str) -> None:
    try:
        shlex.split(line)
    except ValueError as error:
        desk.error(keys, f"{line!r} cannot be cut into words: {error}", "close the quotation mark")


def _check_interface(desk: Desk) -> None:
    wanted = desk.site.rendezvous.interface
    names = {name for node in desk.site.nodes.values() for name in node.links.nic_names}
    if not wanted or not names or any(name.startswith((*_RDMA_DEVICES, wanted)) for name in names):
        return
    desk.warning(
        ("rendezvous", "interface"),
        f"interface {wanted} is not among links.nic_names: {', '.join(sorted(names))}",
        "name one of them (or what they begin with), or complete nic_names",
    )


def _check_identity(desk: Desk) -> None:
    identity = desk.site.identity
    for index, pattern in enumerate(identity.hostnames):
        keys = ("identity", "hostnames", index)
        try:
            re.compile(pattern)
        except re.error as error:
            desk.error(keys, f"{pattern!r} is no regular expression: {error}", "correct it; \\. is a dot")
            continue
        if proves_nothing(pattern) and not identity.probe:
            desk.warning(
                keys,
                f"{pattern!r} fits the login nodes of many machines, so it proves nothing by itself",
                "add the domain, or identity.probe with a variable that the machine sets",
            )


def _check_provenance(desk: Desk) -> None:
    """Names of fields, in ``sources`` and ``unverified``, that no field has."""
    identity = desk.site.identity
    known = [path for path in paths(desk.site) if path[:2] != ("identity", "sources")]
    named: list[tuple[tuple[str | int, ...], str]] = [
        (("identity", "sources", key), key) for key in identity.sources
    ]
    named += [(("identity", "unverified", i), key) for i, key in enumerate(identity.unverified)]
    for keys, pattern in named:
        if not any(covers(pattern, path) for path in known):
            message = f"{'.'.join(map(str, keys[:2]))} names {pattern!r}, which no field of this file is"
            desk.warning(keys, message, "write a dotted path, * for any key: nodes.*.links.host")
