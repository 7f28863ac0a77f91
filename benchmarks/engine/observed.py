"""What keeping account costs: processor time of the rank's thread.

usage: python benchmarks/engine/observed.py
"""

import time
from collections.abc import Callable

import torch

from hpcdl.engine.timeline import COMPUTE, Timeline
from hpcdl.engine.transport.base import Done, Transport
from hpcdl.engine.transport.memory import MemoryTransport, World
from hpcdl.engine.transport.observed import Observed

COUNT = 2000  # operations or spans, about those of a step
ROUNDS = 200


class Nowhere(MemoryTransport):
    """A door at which sending takes no time."""

    def send(self, tensor: torch.Tensor, peer: int, tag: int) -> Done:  # noqa: ARG002
        """Done."""
        return Done()


def microseconds(work: Callable[[], object]) -> float:
    """Of one of the ``COUNT`` things that ``work`` does, in its best round."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.thread_time()
        work()
        best = min(best, time.thread_time() - start)
    return best / COUNT * 1e6


def send(door: Transport) -> None:
    """Messages that need not be waited for."""
    message = torch.zeros(16)
    for _ in range(COUNT):
        door.send(message, 1, tag=0).wait()


def span(timeline: Timeline) -> Timeline:
    """Spans around nothing."""
    for number in range(COUNT):
        with timeline.span(COMPUTE, "forward", microbatch=number):
            pass
    return timeline


def main() -> None:
    """A line for each thing that a rank does."""
    bare = microseconds(lambda: send(Nowhere(World(2), 0)))
    observed = microseconds(lambda: send(Observed(Nowhere(World(2), 0), Timeline())))
    print(f"{observed - bare:5.2f} us an operation at the door (bare {bare:.2f}, observed {observed:.2f})")
    opened = microseconds(lambda: span(Timeline()))
    print(f"{opened:5.2f} us a span")
    taken = microseconds(lambda: span(Timeline()).take())
    print(f"{taken - opened:5.2f} us to read a span at the end of the step")


if __name__ == "__main__":
    main()
