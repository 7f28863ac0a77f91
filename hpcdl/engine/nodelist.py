"""Which nodes the scheduler gave to this job, and on which of them ranks that never came should be."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path

from hpcdl.engine.ranks import Place

_PART = re.compile(r"\[([^\]]*)\]|([^\[\],]+)")
_NAME = re.compile(r"(?:\[[^\]]*\]|[^\[\],])+")


def allocated(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The nodes of this job in the scheduler's order; none where it does not say."""
    if listed := environment.get("SLURM_JOB_NODELIST"):
        return expanded(listed)
    if file := environment.get("PBS_NODEFILE") or environment.get("LSB_DJOB_HOSTFILE"):
        try:
            return list(dict.fromkeys(Path(file).read_text(encoding="utf-8").split()))
        except OSError:
            return []
    return []


def expanded(listed: str) -> list[str]:
    """``n1, n2, n5`` for Slurm's ``n[1-2,5]``; leading zeros are kept."""
    return [name for each in _NAME.findall(listed) for name in _names(each)]


def _names(each: str) -> list[str]:
    parts = [_numbers(inside) if inside else [plain] for inside, plain in _PART.findall(each)]
    return ["".join(chosen) for chosen in product(*parts)]


def _numbers(inside: str) -> list[str]:
    found = []
    for part in inside.split(","):
        first, dash, last = part.partition("-")
        ends = range(int(first), int(last) + 1) if dash else ()
        found += [f"{number:0{len(first)}d}" for number in ends] if dash else [first]
    return found


def whereabouts(
    missing: Sequence[int], came: Mapping[int, str], nodes: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """On which nodes the ``missing`` ranks should be, as far as it can be known.

    Ranks are numbered node by node, so a missing one is where its neighbours are; where all of a node's are
    missing, it is the node in the scheduler's list from which nobody came. A list may name others, such as
    LSF's of the host that runs the script, and ranks may call their nodes otherwise than it does.

    Args:
        missing: the ranks that did not come, ascending.
        came: the nodes of those that did, by rank.
        nodes: of the job, in the scheduler's order; none if unknown.
    """
    size, hosts = len(missing) + len(came), set(came.values())
    found: dict[str, list[int]] = defaultdict(list)
    if nodes and size % len(nodes) == 0 and _in_order(came, nodes, each := size // len(nodes)):
        for rank in missing:
            found[nodes[rank // each]].append(rank)
        return {host: tuple(ranks) for host, ranks in found.items()}
    silent = [node for node in nodes if node not in hosts]
    whole = len(missing) * len(nodes) == size and missing[-1] - missing[0] + 1 == len(missing)
    return {silent[0]: tuple(missing)} if whole and len(silent) == 1 and hosts & set(nodes) else {}


def _in_order(came: Mapping[int, str], nodes: Sequence[str], each: int) -> bool:
    return all(nodes[rank // each] == host for rank, host in came.items())


def host_of_first(place: Place, nodes: Sequence[str]) -> str | None:
    """The node of rank 0, if ``place`` is where it is when ranks are numbered node by node.

    Args:
        place: of another rank.
        nodes: of the job, in the scheduler's order; none if unknown.
    """
    each, rest = divmod(place.world_size, len(nodes)) if nodes else (0, 1)
    return nodes[0] if not rest and each and nodes[place.rank // each] == place.host else None


def suspects(whereabouts: Mapping[str, tuple[int, ...]], came: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Nodes that may be to blame: not where all nodes are alike, which is nobody's own fault."""
    return dict(whereabouts) if set(came) - set(whereabouts) else {}
