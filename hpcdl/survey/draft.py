"""A first site file, from what a scheduler and perhaps one compute node said. Pure.

Nothing is invented silently: what nobody said stands in ``identity.unverified``, what somebody said in
``identity.sources``.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import yaml

from hpcdl.errors import SchedulerError
from hpcdl.survey import drafting_nodes
from hpcdl.survey.drafting_nodes import DeviceKind
from hpcdl.survey.node import Node
from hpcdl.survey.seen import Host, Machine, Queue, Shape
from hpcdl.units import format_walltime

_UNSAFE = re.compile(r"[^a-z0-9]+")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./ -]*")
_FAST_NETWORKS = ("hsn", "ib")
_HEAD = """\
# yaml-language-server: $schema=site.schema.json
# {name}: a draft. Correct what identity.unverified lists, then: hpcdl site check FILE
# The schema that editors read: hpcdl schema site > site.schema.json
"""


@dataclass(frozen=True)
class Wish:
    """What a draft is to be."""

    name: str | None = None  # None: as the machine calls itself
    device: DeviceKind | None = None  # None: GPUs where the scheduler has any
    launcher: str = "srun"
    host: str = ""  # where it was asked
    date: str = ""


@dataclass(frozen=True)
class Reported:
    """What a compute node said of itself."""

    node: Node
    queue: str  # that gave it


@dataclass(frozen=True)
class _Kind:
    """One node type of the draft."""

    shape: Shape
    queues: tuple[Queue, ...]

    def name(self, device: DeviceKind) -> str:
        """What the draft calls it: by its GPUs if they are to compute, else by its CPUs."""
        return (
            f"{self.shape.gpu_type or 'gpu'}x{self.shape.gpus}"
            if device == "gpu"
            else f"cpu{self.shape.cpus}"
        )


def draft(machine: Machine, reported: Reported | None, wish: Wish) -> str:
    """A site file, as text.

    Args:
        machine: what the scheduler said.
        reported: what a compute node said, if one was asked.
        wish: what the file is to be.

    Raises:
        SchedulerError: no queue has nodes on which ranks could compute.
    """
    device = wish.device or ("gpu" if any(host.shape.gpus for host in machine.hosts) else "cpu")
    kinds = _kinds(machine, device)
    if not kinds:
        raise SchedulerError(
            f"no queue of {machine.name} has nodes with a {device}",
            "with --device cpu the cores of its nodes compute"
            if device == "gpu"
            else "their CPUs are not known before they are up; ask again then",
        )
    queues = {queue.name: name for name, kind in kinds.items() for queue in kind.queues}
    default = next((queue.name for queue in machine.queues if queue.default and queue.name in queues), None)
    content = {
        "name": wish.name or slug(machine.name),
        "description": f"{machine.name}, {len(machine.hosts)} nodes under {machine.kind} {machine.version}",
        "identity": _identity(machine, reported, wish),
        "scheduler": _scheduler(machine, device),
        "launch": {"launcher": wish.launcher},
        "partitions": {
            queue.name: _partition(machine, queue, queues[queue.name], device)
            for queue in machine.queues
            if queue.name in queues
        },
        "default_partition": default or next(iter(queues)),
        "nodes": {name: _node(kind, machine, reported, device) for name, kind in kinds.items()},
        "rendezvous": _rendezvous(reported),
    }
    return _HEAD.format(name=content["name"]) + _yaml(content)


def slug(name: str) -> str:
    """A site's name from what a machine calls itself."""
    return _UNSAFE.sub("-", name.lower()).strip("-") or "machine"


def _kinds(machine: Machine, device: DeviceKind) -> dict[str, _Kind]:
    """The node types, each with the queues that give it."""
    found: dict[Shape, tuple[Queue, ...]] = {}
    for queue in machine.queues:
        shape = _commonest(machine.hosts_of(queue), device)
        if shape is not None:
            found[shape] = (*found.get(shape, ()), queue)
    kinds: dict[str, _Kind] = {}
    for shape, queues in found.items():
        kind = _Kind(shape, queues)
        name = kind.name(device)
        kinds[name if name not in kinds else f"{name}-{len(kinds)}"] = kind
    return kinds


def _commonest(hosts: list[Host], device: DeviceKind) -> Shape | None:
    """What most of the nodes have that have the device; features tell nodes apart, not their kind.

    A node that never reported has no CPUs.
    """
    able = [host for host in hosts if host.shape.cpus and (device == "cpu" or host.shape.gpus)]
    shapes = Counter(_bare(host) for host in able)
    return shapes.most_common(1)[0][0] if shapes else None


def _bare(host: Host) -> Shape:
    return replace(host.shape, features=frozenset())


def _partition(machine: Machine, queue: Queue, node: str, device: DeviceKind) -> dict[str, Any]:
    hosts = machine.hosts_of(queue)
    commonest = _commonest(hosts, device)
    alike = [host for host in hosts if _bare(host) == commonest]
    partition: dict[str, Any] = {"node": node, "kind": "partition" if machine.kind == "slurm" else "queue"}
    if machine.kind == "slurm" and len(alike) < len(hosts):
        partition |= _constraint(alike, [host for host in hosts if _bare(host) != commonest])
    most = min(queue.max_nodes or len(alike), len(alike))
    partition |= {"min_nodes": queue.min_nodes} if queue.min_nodes > 1 else {}
    partition |= {} if queue.routing else {"max_nodes": most}
    if queue.max_seconds is not None:
        partition["walltime"] = [{"limit": format_walltime(queue.max_seconds)}]
    flags = {name: True for name in ("shared", "routing", "preemptible") if getattr(queue, name)}
    return partition | flags


def _constraint(wanted: list[Host], others: list[Host]) -> dict[str, str]:
    """A feature that all of ``wanted`` have and none of ``others``, if there is one."""
    common = frozenset.intersection(*(host.shape.features for host in wanted))
    own = sorted(common.difference(*(host.shape.features for host in others)))
    return {"constraint": own[0]} if own else {}


def _scheduler(machine: Machine, device: DeviceKind) -> dict[str, Any]:
    return {
        "kind": machine.kind,
        "flavour": machine.version,
        "gpu_request": "gpus-per-node" if device == "gpu" else "none",
        **({"max_array": machine.max_array} if (machine.max_array or 0) > 1 else {}),
        **({} if machine.accounting else {"accounting": False}),
        **({"place": "scatter"} if machine.kind == "pbs" else {}),
    }


def _node(kind: _Kind, machine: Machine, reported: Reported | None, device: DeviceKind) -> dict[str, Any]:
    asked = reported and any(queue.name == reported.queue for queue in kind.queues)
    node = reported.node if reported and asked else None
    memory = kind.shape.memory if machine.counts_memory or node is None else node.memory
    return drafting_nodes.node(kind.shape, memory, node, device)


def _rendezvous(reported: Reported | None) -> dict[str, str]:
    interface = reported.node.interface if reported else None
    known = interface is not None and interface.startswith(_FAST_NETWORKS)
    return {"address": "hostname"} | ({"interface": interface} if interface and known else {})


def _identity(machine: Machine, reported: Reported | None, wish: Wish) -> dict[str, Any]:
    program = {"slurm": "scontrol", "pbs": "qstat and pbsnodes"}[machine.kind]
    seen = f"observed on {wish.host} {wish.date} with {program}"
    sources = {"scheduler": seen, "partitions": seen, "nodes": seen}
    if reported:
        sources["nodes"] += (
            f"; devices, links and memory by a job on {reported.node.host}, queue {reported.queue}"
        )
    host = re.sub(r"\d+", lambda _: r"\d+", re.escape(wish.host))
    return {
        "status": "draft",
        "hostnames": [host] if host else [],
        "sources": _Block(sources),
        "unverified": [
            "identity.hostnames", "launch", "rendezvous", "scheduler.gpu_request",
            *drafting_nodes.doubts(machine, reported.node if reported else None),
        ],
    }  # fmt: skip


class _Block(dict[str, str]):
    """A mapping of which every entry gets a line."""


class _Dumper(yaml.SafeDumper):
    """Quotes what a reader of another version of YAML might take for a number or a time."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if _PLAIN.fullmatch(text) else '"'
    ),
)

_Dumper.add_representer(
    _Block,
    lambda dumper, entries: dumper.represent_mapping("tag:yaml.org,2002:map", entries, flow_style=False),
)


def _yaml(content: dict[str, Any]) -> str:
    return yaml.dump(
        content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )
