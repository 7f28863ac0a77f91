"""Spans of ranks as one trace in the Trace Event Format, which Perfetto and chrome://tracing open.

Each rank is a process of the trace, each kind of work a thread of it, called lane here. Spans that overlap
although they are of one kind, such as two reductions under way, get a lane each. An arrow leads from each
message sent to where it was received.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from hpcdl.engine.timeline import (
    ALL_GATHER,
    ALL_REDUCE,
    BROADCAST,
    COMPUTE,
    OPTIMIZER,
    P2P,
    PHASE,
    REDUCE_SCATTER,
    Span,
    outside_idle,
)
from hpcdl.units import format_bytes

_IN_FLIGHT = (P2P, ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST)
LANES = ("phases", "compute", "waiting", *_IN_FLIGHT)
"""The kinds of work of one rank, from top to bottom."""

# Names that chrome://tracing has colours for; Perfetto colours by name.
_COLOURS = {
    "forward": "thread_state_running",
    "backward": "thread_state_runnable",
    "weight": "thread_state_iowait",
    OPTIMIZER: "rail_animation",
    "idle": "grey",
}


@dataclass(frozen=True)
class RankTrace:
    """What one rank did, by the clock of its host; all ranks left the same barriers at ``barriers``."""

    rank: int
    host: str
    title: str  # e.g. rank 3 · data 1 · stage 0
    order: int  # where it stands among the ranks, from the top
    barriers: list[float]
    spans: list[Span]
    flights: list[Span]


def merged(traces: Sequence[RankTrace]) -> dict[str, Any]:
    """One trace of all ranks, in microseconds since they left the last barrier."""
    zeros = host_zeros(traces)
    events = [event for trace in traces for event in _rank_events(trace, zeros[trace.host])]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def host_zeros(traces: Sequence[RankTrace]) -> dict[str, float]:
    """What the clock of each host said at the moment that the trace counts from.

    Ranks of one host share a clock. Of each barrier a host knows when the first of its ranks left it; by how
    much two hosts differ is the median over the barriers, which forgives one that somebody left late.
    """
    hosts: dict[str, list[list[float]]] = defaultdict(list)
    for trace in traces:
        hosts[trace.host].append(trace.barriers)
    left = {host: [min(times) for times in zip(*ranks, strict=True)] for host, ranks in hosts.items()}
    first = left[traces[0].host]
    return {
        host: first[-1] + median(there - here for there, here in zip(times, first, strict=True))
        for host, times in left.items()
    }


def _rank_events(trace: RankTrace, zero: float) -> Iterator[dict[str, Any]]:
    yield _about(trace.rank, 0, "process_name", name=trace.title)
    yield _about(trace.rank, 0, "process_sort_index", sort_index=trace.order)
    for thread, (lane, spans) in enumerate(_lanes(trace)):
        yield _about(trace.rank, thread, "thread_name", name=lane)
        yield _about(trace.rank, thread, "thread_sort_index", sort_index=thread)
        for span in spans:
            event = _complete(trace.rank, thread, span, zero)
            yield event
            if lane.startswith(P2P):
                yield _arrow(event, span)


def _about(rank: int, thread: int, what: str, **values: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": rank, "tid": thread, "name": what, "args": values}


def _complete(rank: int, thread: int, span: Span, zero: float) -> dict[str, Any]:
    event = {
        "ph": "X",
        "pid": rank,
        "tid": thread,
        "name": _title(span.name, span.facts),
        "cat": span.category,
        "ts": round((span.start - zero) * 1e6, 3),
        "dur": round(span.seconds * 1e6, 3),
        "args": dict(span.facts),
    }
    colour = _COLOURS.get(span.name) or _COLOURS.get(span.category)
    return event | ({"cname": colour} if colour else {})


def _arrow(message: Mapping[str, Any], span: Span) -> dict[str, Any]:
    """The end of an arrow that lies on this rank: at the start of a send, or where a receive was over."""
    rank, peer = message["pid"], span.facts["peer"]
    sends = span.name == "send"
    source, target = (rank, peer) if sends else (peer, rank)
    return {
        "ph": "s" if sends else "f",
        "bp": "e",
        "id": f"{source}-{target}-{span.facts['tag']}-{span.facts['count']}",
        "name": "message",
        "cat": P2P,
        "pid": rank,
        "tid": message["tid"],
        # An arrow binds to the span around it, and the end of a span is no longer inside.
        "ts": message["ts"] if sends else max(message["ts"], message["ts"] + message["dur"] - 1),
    }


def _title(name: str, facts: Mapping[str, int]) -> str:
    words = [name]
    if "peer" in facts:
        words.append(f"{'to' if name == 'send' else 'from'} {facts['peer']}")
    if "ranks" in facts:
        words.append(f"over {facts['ranks']}")
    if "microbatch" in facts:
        words.append(str(facts["microbatch"]))
    if facts.get("chunk"):
        words.append(f"chunk {facts['chunk']}")
    size = f", {format_bytes(facts['bytes'])}" if "bytes" in facts else ""
    return " ".join(words) + size


def _lanes(trace: RankTrace) -> Iterator[tuple[str, list[Span]]]:
    """The lanes of one rank from top to bottom, each with its spans in order of time."""
    by_lane: dict[str, list[Span]] = defaultdict(list)
    for span, _ in outside_idle(trace.spans):
        by_lane[_lane(span.category)].append(span)
    for flight in _numbered(trace.flights):
        by_lane[flight.category].append(flight)
    for name in LANES:
        for number, row in enumerate(_rows(by_lane[name]), start=1):
            yield (name if number == 1 else f"{name} {number}"), row


def _numbered(flights: Iterable[Span]) -> Iterator[Span]:
    """``flights`` in order; a message says how many of its tag went before it: both ends count alike."""
    seen: Counter[tuple[str, int, int]] = Counter()
    for flight in sorted(flights, key=lambda flight: flight.start):
        if flight.category == P2P:
            key = (flight.name, flight.facts["peer"], flight.facts["tag"])
            yield replace(flight, facts={**flight.facts, "count": seen[key]})
            seen[key] += 1
        else:
            yield flight


def _lane(category: str) -> str:
    if category == PHASE:
        return "phases"
    return "compute" if category in (COMPUTE, OPTIMIZER) else "waiting"


def _rows(spans: Iterable[Span]) -> list[list[Span]]:
    """As few rows as hold ``spans`` without overlap."""
    rows: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: span.start):
        free = next((row for row in rows if row[-1].end <= span.start), None)
        if free is None:
            rows.append([span])
        else:
            free.append(span)
    return rows
