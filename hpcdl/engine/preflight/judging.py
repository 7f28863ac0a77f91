"""What is wrong with the nodes of an attempt, from what its ranks saw and measured. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

from hpcdl.placement import Finding, Host, Placement, Seat
from hpcdl.spec.job import Layout
from hpcdl.units import ranges


@dataclass(frozen=True)
class Plan:
    """What the launcher was told.

    Args:
        layout: where ranks go.
        one_machine: whether all nodes are this machine, whatever they are called.
        devices: whether ranks compute on devices that are counted.
        device_per_rank: whether a rank sees only its own.
    """

    layout: Layout
    one_machine: bool = False
    devices: bool = False
    device_per_rank: bool = False


def misplaced(placement: Placement, plan: Plan) -> list[Finding]:
    """Ranks that are not where the plan says, or have not what it gives them."""
    return [
        *_elsewhere(placement, plan),
        *_without_device(placement, plan),
        *_sharing(placement),
        *_without_cores(placement, plan),
        *_far_from_device(placement),
        *_without_nics(placement.hosts),
    ]


def crowded(placement: Placement, plan: Plan) -> bool:
    """Whether ranks must share cores because nodes have fewer than they are said to have."""
    ranks = plan.layout.ranks if plan.one_machine else plan.layout.ranks_per_node
    return any(host.cpus < ranks * plan.layout.cores_per_rank for host in placement.hosts)


def _by_host(seats: Iterable[Seat]) -> dict[str, list[Seat]]:
    found: dict[str, list[Seat]] = defaultdict(list)
    for seat in seats:
        found[seat.host].append(seat)
    return found


def _elsewhere(placement: Placement, plan: Plan) -> Iterator[Finding]:
    """Nothing is known of nodes that are all one machine."""
    if plan.one_machine:
        return
    nodes, each = plan.layout.nodes, plan.layout.ranks_per_node
    for host, seats in _by_host(placement.seats).items():
        if len(seats) != each:
            words = f"{_count(len(seats), 'rank')} here, and the layout puts {each} on each of {nodes} nodes"
            yield _finding("placement", host, seats, words, grave=True)


def _without_device(placement: Placement, plan: Plan) -> Iterator[Finding]:
    if not plan.devices:
        return
    for host, seats in _by_host(placement.seats).items():
        for seen in sorted({seat.devices or 0 for seat in seats if seat.device is None}):
            lacking = [seat for seat in seats if seat.device is None and (seat.devices or 0) == seen]
            needed = 1 if plan.device_per_rank else plan.layout.ranks_per_node
            words = f"{who(lacking)}: {_count(seen, 'device')} to be seen, where {needed} should be"
            yield _finding("device", host, lacking, words, grave=True)
        many = [seat for seat in seats if plan.device_per_rank and (seat.devices or 0) > 1]
        if many:
            most = max(seat.devices or 0 for seat in many)
            words = f"{who(many)}: {most} devices to be seen, where the site file says 1"
            yield _finding("device", host, many, words, grave=False)


def _sharing(placement: Placement) -> Iterator[Finding]:
    for host, seats in _by_host(placement.seats).items():
        users: dict[str, list[Seat]] = defaultdict(list)
        for seat in seats:
            if seat.device and seat.device.identity:
                users[seat.device.identity].append(seat)
        for identity, sharing in users.items():
            if len(sharing) > 1:
                assert sharing[0].device is not None  # noqa: S101 - for mypy
                words = f"{who(sharing)} share one device ({sharing[0].device.name}, {identity})"
                yield _finding("device", host, sharing, words, grave=True)


def _without_cores(placement: Placement, plan: Plan) -> Iterator[Finding]:
    needed, is_crowded = plan.layout.cores_per_rank, crowded(placement, plan)
    for host, seats in _by_host(placement.seats).items():
        short = [seat for seat in seats if seat.cpu_count < needed]
        if short:
            fewest = min(short, key=lambda seat: seat.cpu_count)
            words = (
                f"{who(short)}: {_count(fewest.cpu_count, 'core')} to run on ({fewest.cpus}), "
                f"where the layout gives {needed}"
            )
            yield _finding("cores", host, short, words, grave=not is_crowded)


def _far_from_device(placement: Placement) -> Iterator[Finding]:
    for host, seats in _by_host(placement.seats).items():
        far = [seat for seat in seats if seat.numa and _device_numa(seat) not in (None, *seat.numa)]
        if far:
            words = f"{who(far)} run on cores that are far from their devices"
            yield _finding("cores", host, far, words, grave=False)


def _device_numa(seat: Seat) -> int | None:
    return seat.device.numa if seat.device else None


def _without_nics(hosts: Sequence[Host]) -> Iterator[Finding]:
    """Ports of the fabric that are up on most nodes, and missing or slower on one."""
    speeds: dict[str, list[float]] = defaultdict(list)
    for host in hosts:
        for nic in host.nics:
            if ":" in nic.name or nic.name.startswith("hsn"):
                speeds[nic.name].append(nic.gbits or 0.0)
    usual = {name: median_low(found) for name, found in speeds.items() if 2 * len(found) > len(hosts)}
    for host in hosts if len(hosts) > 2 else ():
        own = {nic.name: nic.gbits or 0.0 for nic in host.nics}
        for name, speed in sorted(usual.items()):
            if name not in own:
                yield Finding("nic", host.name, (), f"{name} is not up, as on most nodes")
            elif own[name] < speed:
                yield Finding("nic", host.name, (), f"{name} runs at {own[name]:g} Gb/s, most at {speed:g}")


TIMED: Mapping[str, Callable[[Seat], float | None]] = {
    "product": lambda seat: seat.product_seconds,
    "host": lambda seat: seat.host_seconds,
    "link": lambda seat: seat.link_seconds,
}
"""What is compared over all ranks."""

_WORDS = {
    "product": "{who} took {worst:.3g} s for matrix products",
    "host": "an all-reduce on it ({who}) took {worst:.3g} s",
    "link": "all-reduces of {who} with other nodes took {worst:.3g} s",
}

Slow = dict[str, frozenset[int]]
"""Ranks that were slow, by what they were slow at."""


@dataclass(frozen=True)
class Rule:
    """When a time is too long: beyond ``factor`` times the median, and ``floor`` seconds more than it."""

    factor: float
    floor: float

    def limit(self, seconds: Sequence[float]) -> tuple[float, float]:
        """The median, and the longest time that is still right."""
        usual = median_low(seconds)
        return usual, max(self.factor * usual, usual + self.floor)


def laggards(seats: Sequence[Seat], rule: Rule, fleet: Sequence[Seat] | None = None) -> Slow:
    """Which of ``seats`` took too long, compared with the median of ``fleet``, by default of all of them."""
    found: Slow = {}
    for kind, of in TIMED.items():
        times = [took for seat in fleet or seats if (took := of(seat)) is not None]
        if len(times) > 1:
            most = rule.limit(times)[1]
            found[kind] = frozenset(seat.rank for seat in seats if (of(seat) or 0.0) > most)
    return found


def slow(seats: Sequence[Seat], late: Slow, rule: Rule, *, grave: bool) -> list[Finding]:
    """The nodes of the ranks that were too ``late``, one finding a node and kind, with numbers."""
    findings = []
    for kind, ranks in late.items():
        of = TIMED[kind]
        usual = rule.limit([took for seat in seats if (took := of(seat)) is not None])[0]
        for host, own in _by_host(seat for seat in seats if seat.rank in ranks).items():
            worst = max(of(seat) or 0.0 for seat in own)
            what = _WORDS[kind].format(who=who(own), worst=worst)
            words = f"{what}, {worst / usual:.1f} times the median of all ranks ({usual:.3g} s)"
            findings.append(_finding(kind, host, own, words, grave=grave))
    return findings


def who(seats: Sequence[Seat]) -> str:
    """``rank 3`` or ``ranks 0-3``."""
    return f"rank{'s' if len(seats) > 1 else ''} {ranges(seat.rank for seat in seats)}"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _finding(kind: str, host: str, seats: Iterable[Seat], words: str, *, grave: bool) -> Finding:
    return Finding(kind, host, tuple(seat.rank for seat in seats), words, grave)
