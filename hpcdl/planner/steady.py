"""How long a pipeline takes on the clock, driving no more microbatches than it takes to see how it goes on.

Past its first microbatches a pipeline does the same again and again, so n more take n times as much longer.
Of a batch that would take too many operations two shorter ones are driven, and the difference between them is
carried on. Where the machine repeats itself exactly, as with equal stages, that is exact; tests hold the rest
within 8 %.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from hpcdl.planner.pipeline import simulate
from hpcdl.stage import Flow

OPERATIONS = 1 << 16
"""Forwards and backwards that are driven before a batch counts as too long: half a second."""


def operations(flow: Flow) -> int:
    """How many forwards and backwards ``seconds`` drives."""
    return 2 * flow.ranks * flow.chunks * sum(_driven(flow))


@lru_cache(maxsize=4096)
def seconds(
    flow: Flow,
    forward: tuple[float, ...],
    backward: tuple[float, ...],
    weight: tuple[float, ...],
    hop: float,
) -> float:
    """As ``simulate``, of every batch however long."""
    counts = _driven(flow)
    found = [simulate(replace(flow, microbatches=count), forward, backward, weight, hop) for count in counts]
    if len(counts) == 1:
        return found[0]
    (short, long), (begun, ended) = counts, found
    return ended + (flow.microbatches - long) * (ended - begun) / (long - short)


def _driven(flow: Flow) -> tuple[int, ...]:
    """Microbatches of the batches that are driven: all of them, or two shorter ones."""
    stages = flow.ranks * flow.chunks
    long = max(OPERATIONS // (2 * stages), 3 * flow.limit)
    return (flow.microbatches,) if flow.microbatches <= long else (long // 2, long)
