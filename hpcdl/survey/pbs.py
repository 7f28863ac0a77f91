"""What ``qstat -B``, ``qstat -Q`` and ``pbsnodes -a`` say as JSON, as a machine. Pure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from hpcdl.errors import SchedulerError
from hpcdl.survey.seen import Host, Machine, Queue, Shape
from hpcdl.units import KIB, parse_walltime

COMMANDS = (
    ("qstat", "-B", "-f", "-F", "json"),
    ("qstat", "-Q", "-f", "-F", "json"),
    ("pbsnodes", "-a", "-F", "json"),
)
"""What is asked, in the order in which :func:`machine` takes the answers."""

# PBS Professional writes kb for 1024 bytes (pbs_resources(7B), size).
_UNITS = {"b": 1, "kb": KIB, "mb": KIB**2, "gb": KIB**3, "tb": KIB**4}


def machine(server: str, queues: str, nodes: str) -> Machine:
    """The machine that these three answers describe.

    Raises:
        SchedulerError: an answer is not what PBS prints.
    """
    servers = _section(server, "Server", "qstat -B")
    name, about = next(iter(servers.items()))
    return Machine(
        kind="pbs",
        name=name,
        version=str(about.get("pbs_version", "")),
        hosts=tuple(_hosts(_section(nodes, "nodes", "pbsnodes -a").values())),
        queues=tuple(
            _queue(key, queue, default=key == about.get("default_queue"))
            for key, queue in _section(queues, "Queue", "qstat -Q").items()
        ),
        max_array=about.get("max_array_size"),
    )


def _section(text: str, key: str, command: str) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        content = None
    section = content.get(key) if isinstance(content, dict) else None
    if not isinstance(section, dict) or not section or not all(isinstance(v, dict) for v in section.values()):
        raise SchedulerError(
            f"{command!r} answered what is no JSON of PBS's: {text.strip()[:80]!r}",
            "see whether the program answers by hand; nothing was changed",
        )
    return section


def _hosts(vnodes: Iterable[Mapping[str, Any]]) -> Iterable[Host]:
    """Hosts; one that is cut into several vnodes has what they have together."""
    parts: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for vnode in vnodes:
        offered = _resources(vnode, "resources_available")
        parts[str(offered.get("host") or vnode.get("Mom"))].append(offered)
    for name, offers in parts.items():
        cpus, gpus = (sum(_count(offer, key) for offer in offers) for key in ("ncpus", "ngpus"))
        memory = sum(_bytes(str(offer.get("mem", "0b"))) for offer in offers)
        yield Host(name, Shape(cpus=cpus, memory=memory, gpus=gpus, features=_features(offers)))


def _features(offers: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """What else the vnodes offer, as a select chunk asks for it: ``system=polaris``."""
    common = ("ncpus", "ngpus", "mem", "host", "vnode")
    return frozenset(f"{k}={v}" for offer in offers for k, v in offer.items() if k not in common)


def _queue(name: str, about: Mapping[str, Any], *, default: bool) -> Queue:
    most, least = _resources(about, "resources_max"), _resources(about, "resources_min")
    walltime = most.get("walltime")
    return Queue(
        name=name,
        default=default,
        max_seconds=None if walltime is None else _seconds(str(walltime)),
        min_nodes=max(1, _count(least, "nodect")),
        max_nodes=_count(most, "nodect") or None,
        shared=True,
        routing=about.get("queue_type") == "Route",
        open=about.get("enabled") == "True" and about.get("started") == "True",
    )


def _resources(about: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Resources by name; what is left out is none."""
    found = about.get(key, {})
    if not isinstance(found, dict):
        raise SchedulerError(f"PBS gives {key} = {found!r}, which are no resources")
    return found


def _count(resources: Mapping[str, Any], key: str) -> int:
    value = str(resources.get(key, 0))
    if not value.isdecimal():
        raise SchedulerError(f"PBS gives {key} = {value!r}, which is no number")
    return int(value)


def _bytes(text: str) -> int:
    number = text.rstrip("bkmgt")
    unit = text[len(number) :]
    if not number.isdecimal() or unit not in _UNITS:
        raise SchedulerError(f"PBS gives mem = {text!r}, which is no size")
    return int(number) * _UNITS[unit]


def _seconds(text: str) -> int:
    try:
        return parse_walltime(text)
    except ValueError:
        raise SchedulerError(f"PBS gives resources_max.walltime = {text!r}, which is no time") from None
