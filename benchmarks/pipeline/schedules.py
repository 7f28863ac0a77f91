"""What in-flight limits, interleaving and deferral are worth: the engine's own stage machine and a clock.

    python benchmarks/pipeline/schedules.py

Prints seconds of a batch over those of a pipeline that never waits, the tables of docs/design/005.
A microbatch takes 1 s forward and 2 s backward on every rank, half of it for the weights; m is 8 a rank.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import median

from hpcdl.planner.pipeline import Hop, simulate
from hpcdl.stage import Flow

RANKS = (4, 8)
SHAPES = ((1, False), (2, False), (4, False), (1, True), (2, True))
SEEDS = 5
LINKS: dict[str, Callable[[random.Random], Hop]] = {
    "free": lambda rng: 0.0,
    "0.1 s a message": lambda rng: 0.1,
    "0.5 s a message": lambda rng: 0.5,
    "one in four 1 s late": lambda rng: lambda: rng.choice((0.0, 0.0, 0.0, 1.0)),
}


def overhead(
    ranks: int, chunks: int, limit: int, *, defer: bool, link: Callable[[random.Random], Hop]
) -> float:
    """Seconds of a batch over those of its work, the median of the seeds."""
    flow = Flow(ranks, 8 * ranks, chunks, limit, defer)
    forward = [1 / chunks] * (ranks * chunks)
    backward = [2 * seconds for seconds in forward]
    hops = [link(random.Random(seed)) for seed in range(SEEDS)]
    runs = [
        simulate(flow, forward, backward, forward, hop) for hop in hops[: SEEDS if callable(hops[0]) else 1]
    ]
    return median(runs) / (3 * flow.microbatches)


def main() -> None:
    """Print a table a link."""
    for name, link in LINKS.items():
        print(
            f"\n{name}\n| chunks | deferred | " + " | ".join(f"p {p}: p, 1.5p, 2p, 3p" for p in RANKS) + " |"
        )
        for chunks, defer in SHAPES:
            cells = []
            for ranks in RANKS:
                limits = (ranks, ranks * 3 // 2, 2 * ranks, 3 * ranks)
                found = [overhead(ranks, chunks, limit, defer=defer, link=link) for limit in limits]
                cells.append(", ".join(f"{value:.2f}" for value in found))
            print(f"| {chunks} | {'yes' if defer else 'no'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
