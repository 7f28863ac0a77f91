"""What ``scontrol show config``, ``show partition`` and ``show node`` say, as a machine. Pure.

``--oneliner`` puts one record on a line, ``Key=Value`` apart by blanks. A value may hold blanks (``OS``,
``Reason``), and a reason may hold what looks like a key, so the first of each key counts: reasons come last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from hpcdl.errors import SchedulerError
from hpcdl.survey.seen import Host, Machine, Queue, Shape
from hpcdl.units import MIB, parse_walltime

COMMANDS = (
    ("scontrol", "show", "config"),
    ("scontrol", "show", "partition", "--oneliner"),
    ("scontrol", "show", "node", "--oneliner"),
)
"""What is asked, in the order in which :func:`machine` takes the answers."""

_PAIR = re.compile(r"(?:^|\s)([A-Za-z_/]+)=(\S*)")
_SETTING = re.compile(r"(\w+)\s*= (.*)")
_UNLIMITED = ("UNLIMITED", "INFINITE")
_PREEMPTS_BY_TIER = "preempt/partition_prio"


def machine(config: str, partitions: str, nodes: str) -> Machine:
    """The machine that these three answers describe.

    Raises:
        SchedulerError: an answer is not what Slurm prints.
    """
    pairs = filter(None, map(_SETTING.match, config.splitlines()))
    settings = {match[1]: match[2].strip() for match in pairs}
    records = _records(nodes, "NodeName", "scontrol show node")
    whole_nodes = settings.get("SelectType") == "select/linear"
    tiers = settings.get("PreemptType") == _PREEMPTS_BY_TIER
    found = _records(partitions, "PartitionName", "scontrol show partition")
    ways = [_partition(record, records, whole_nodes=whole_nodes) for record in found]
    return Machine(
        kind="slurm",
        name=_wanted(settings, "ClusterName", "scontrol show config"),
        version=_wanted(settings, "SLURM_VERSION", "scontrol show config"),
        hosts=tuple(Host(record["NodeName"], _shape(record)) for record in records),
        queues=tuple(replace(way, preemptible=tiers and _preempted(way, tier, ways)) for way, tier in ways),
        # It bounds the index, so an array has at most so many elements.
        max_array=_number(settings, "MaxArraySize", "scontrol show config"),
        counts_memory="MEMORY" in settings.get("SelectTypeParameters", "").upper(),
        accounting=settings.get("AccountingStorageType") != "accounting_storage/none",
    )


def _records(text: str, key: str, command: str) -> list[dict[str, str]]:
    """One record a line; the first word of each must be ``key``."""
    records = []
    for line in filter(None, map(str.strip, text.splitlines())):
        record: dict[str, str] = {}
        for name, value in _PAIR.findall(line):
            record.setdefault(name, value)
        if not line.startswith(f"{key}="):
            raise SchedulerError(
                f"{command!r} answered what is no record of Slurm's: {line[:80]!r}",
                "see whether the program answers by hand; nothing was changed",
            )
        records.append(record)
    if not records:
        raise SchedulerError(f"{command!r} answered nothing", "see whether the program answers by hand")
    return records


def _wanted(record: Mapping[str, str], key: str, command: str) -> str:
    if not record.get(key):
        raise SchedulerError(f"{command!r} says nothing of {key}", "see whether the program answers by hand")
    return record[key].strip()


def _number(record: Mapping[str, str], key: str, command: str = "scontrol show node") -> int:
    text = _wanted(record, key, command)
    if not text.isdecimal():
        raise SchedulerError(f"{command!r} gives {key}={text!r}, which is no number")
    return int(text)


def _shape(record: Mapping[str, str]) -> Shape:
    count, kind = gpus(record.get("Gres", ""))
    features = record.get("AvailableFeatures", "(null)")
    reserved = record.get("CoreSpecCount", "")
    return Shape(
        cpus=_number(record, "CPUTot"),
        memory=_number(record, "RealMemory") * MIB,
        cores=_number(record, "Sockets") * _number(record, "CoresPerSocket"),
        reserved=int(reserved) if reserved.isdecimal() else 0,
        gpus=count,
        gpu_type=kind,
        features=frozenset() if features == "(null)" else frozenset(features.split(",")),
    )


def gpus(gres: str) -> tuple[int, str | None]:
    """How many GPUs, and of which type, in ``Gres``: ``gpu:a100:4(S:0-1),craynetwork:4``.

    Of several types none is named.
    """
    found: dict[str | None, int] = {}
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *parts = entry.split(":")
        if name == "gpu":
            count = int(parts.pop()) if parts and parts[-1].isdecimal() else 1
            kind = parts[0] if parts else None
            found[kind] = found.get(kind, 0) + count
    return sum(found.values()), next(iter(found)) if len(found) == 1 else None


def _partition(
    record: Mapping[str, str], nodes: Iterable[Mapping[str, str]], *, whole_nodes: bool
) -> tuple[Queue, int]:
    """A partition, and its tier."""
    name, command = record["PartitionName"], "scontrol show partition"
    most = _wanted(record, "MaxNodes", command)
    members = [node["NodeName"] for node in nodes if name in node.get("Partitions", "").split(",")]
    queue = Queue(
        name=name,
        hosts=frozenset(members),
        default=record.get("Default") == "YES",
        max_seconds=_seconds(_wanted(record, "MaxTime", command)),
        min_nodes=max(1, _number(record, "MinNodes", command)),
        max_nodes=None if most in _UNLIMITED else _number(record, "MaxNodes", command),
        shared=not whole_nodes and record.get("OverSubscribe") != "EXCLUSIVE",
        preemptible=record.get("PreemptMode", "OFF") != "OFF",
        open=record.get("State", "UP") == "UP",
    )
    tier = record.get("PriorityTier", "")
    return queue, int(tier) if tier.isdecimal() else 0


def _preempted(queue: Queue, tier: int, ways: Iterable[tuple[Queue, int]]) -> bool:
    """Whether a partition of a higher tier shares nodes with ``queue`` and may take them from its jobs."""
    above = [other.hosts or frozenset() for other, its_tier in ways if its_tier > tier]
    return queue.preemptible and any(hosts & (queue.hosts or frozenset()) for hosts in above)


def _seconds(text: str) -> int | None:
    if text in _UNLIMITED:
        return None
    try:
        return parse_walltime(text)
    except ValueError:
        raise SchedulerError(f"'scontrol show partition' gives MaxTime={text!r}, which is no time") from None
