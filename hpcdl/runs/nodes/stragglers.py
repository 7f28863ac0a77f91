"""Who is slower than others that do the same work. Pure.

Ranks of one pipeline stage do the same work on different samples. All wait for the slowest, so the time of a
step is nearly the same for each; what differs is how long a rank's own work takes it. A rank is compared with
the others of its stage, the fastest rank of a host with the fastest of other hosts there, step by step.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

LIMIT = 1.1
"""How many times as long as the median of the others counts as slow. GPUs of one type differ by 8 % on
average in the machines that Sinha et al. measured (SC22); less than that would name healthy ones."""
MOST = 0.75  # of the steps must be slow: a busy moment is no slow device
FEWEST = 8  # steps that can tell anything

Unit = TypeVar("Unit", bound=Hashable)


@dataclass(frozen=True)
class Work:
    """What one rank did.

    Args:
        rank: whose work it is.
        host: where it was done.
        stage: ranks of the same one do the same work.
        seconds: of its own work, without waiting, by step.
    """

    rank: int
    host: str
    stage: int
    seconds: Mapping[int, float]


@dataclass(frozen=True)
class Slowness:
    """How slow something is, in its median step.

    Args:
        times: how many times as long it takes as the others.
        seconds: of its own work.
        others: seconds of the others, in the median.
        steps: how many were compared.
    """

    times: float
    seconds: float
    others: float
    steps: int


@dataclass(frozen=True)
class Straggler:
    """A host whose fastest rank of a stage is slow, or one slow rank.

    Args:
        host: where.
        ranks: those that are slow.
        slowness: by how much.
    """

    host: str
    ranks: tuple[int, ...]
    slowness: Slowness


def stragglers(works: Sequence[Work]) -> list[Straggler]:
    """Slow hosts, and slow ranks of hosts that are not slow as a whole; the slowest first."""
    stages: dict[int, list[Work]] = defaultdict(list)
    for work in works:
        stages[work.stage].append(work)
    found = [straggler for stage in stages.values() for straggler in _of_stage(stage)]
    return sorted(found, key=lambda each: (-each.slowness.times, each.ranks))


def _of_stage(works: Sequence[Work]) -> list[Straggler]:
    hosts: dict[str, list[Work]] = defaultdict(list)
    for work in works:
        hosts[work.host].append(work)
    slow_hosts = slow({host: _fastest(there) for host, there in hosts.items()})
    slow_ranks = slow({work.rank: work.seconds for work in works if work.host not in slow_hosts})
    host_of = {work.rank: work.host for work in works}
    return [
        *(
            Straggler(host, tuple(sorted(work.rank for work in hosts[host])), slowness)
            for host, slowness in slow_hosts.items()
        ),
        *(Straggler(host_of[rank], (rank,), slowness) for rank, slowness in slow_ranks.items()),
    ]


def _fastest(works: Iterable[Work]) -> dict[int, float]:
    """What a step took the fastest rank of a host, by step."""
    by_step: dict[int, float] = {}
    for work in works:
        for step, seconds in work.seconds.items():
            by_step[step] = min(seconds, by_step.get(step, seconds))
    return by_step


def slow(units: Mapping[Unit, Mapping[int, float]]) -> dict[Unit, Slowness]:
    """Those that take longer than ``LIMIT`` times the median of the others in most of their steps.

    Args:
        units: seconds by step, of things that do the same work.
    """
    compared: dict[Unit, list[tuple[float, float]]] = defaultdict(list)
    for entries in _by_step(units).values():
        values = [seconds for seconds, _ in entries]
        for index, (seconds, unit) in enumerate(entries):
            compared[unit].append((seconds, _median_without(values, index)))
    return {
        unit: _slowness(pairs)
        for unit, pairs in compared.items()
        if len(pairs) >= FEWEST and sum(own > LIMIT * others for own, others in pairs) >= MOST * len(pairs)
    }


def _by_step(units: Mapping[Unit, Mapping[int, float]]) -> dict[int, list[tuple[float, Unit]]]:
    """Seconds and whose they are, the shortest first; of steps that can be compared."""
    steps: dict[int, list[tuple[float, Unit]]] = defaultdict(list)
    for unit, seconds_of in units.items():
        for step, seconds in seconds_of.items():
            steps[step].append((seconds, unit))
    return {
        step: sorted(entries, key=lambda entry: entry[0])
        for step, entries in steps.items()
        if len(entries) > 1
    }


def _median_without(ordered: Sequence[float], left_out: int) -> float:
    """The median of all values but one, without sorting them anew."""
    count = len(ordered) - 1
    low, high = (
        ordered[place if place < left_out else place + 1] for place in ((count - 1) // 2, count // 2)
    )
    return (low + high) / 2


def _slowness(pairs: Sequence[tuple[float, float]]) -> Slowness:
    return Slowness(
        times=median(own / others if others else float("inf") for own, others in pairs),
        seconds=median(own for own, _ in pairs),
        others=median(others for _, others in pairs),
        steps=len(pairs),
    )


@dataclass(frozen=True)
class HostHistory:
    """How one host did, run after run.

    Args:
        host: which one.
        runs: in how many it was compared.
        slow: in how many of them it, or a rank of it, was a straggler.
        times: how many times as long it took as others, the median of those runs.
        worst: the largest of these.
        worst_run: the run in which that was.
    """

    host: str
    runs: int
    slow: int
    times: float
    worst: float
    worst_run: str


def histories(runs: Mapping[str, Sequence[Work]]) -> list[HostHistory]:
    """Hosts that were slow at least once; those that were so most often first.

    Args:
        runs: the work of each run by its name.
    """
    took_part: dict[str, int] = defaultdict(int)
    slow_in: dict[str, dict[str, float]] = defaultdict(dict)
    for run, works in runs.items():
        for host in _compared(works):
            took_part[host] += 1
        for each in reversed(stragglers(works)):  # the slowest of a host is noted last
            slow_in[each.host][run] = each.slowness.times
    found = [_history(host, took_part[host], times) for host, times in slow_in.items()]
    return sorted(found, key=lambda each: (-each.slow, -each.times, each.host))


def _compared(works: Sequence[Work]) -> set[str]:
    """Hosts of which something can be said: another rank does the same work as one of theirs."""
    ranks = Counter(work.stage for work in works)
    return {work.host for work in works if ranks[work.stage] > 1}


def _history(host: str, runs: int, times: Mapping[str, float]) -> HostHistory:
    worst = max(times, key=lambda run: times[run])
    return HostHistory(host, runs, len(times), median(times.values()), times[worst], worst)
