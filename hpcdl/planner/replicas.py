"""How long a step takes that is disturbed: equal pipelines beside each other, and the slowest decides.

Gradients are reduced over ``data`` when every pipeline is finished, so a step takes the longest of them. A
pipeline under jitter is what the engine's state machine makes of it, which reacts to what comes late: it is
driven by a clock, in Python, about 6 µs an operation. Thousands of pipelines a step are too many for that.

So all of them are *replayed*, as arrays, in the order in which the undisturbed machine did its operations.
Some, the slow ones rather than the others, are also *driven*, with the same disturbances; that gives pairs of
replayed and driven seconds. The driven seconds of every other pipeline are its replayed ones times the ratio
of a pair that was about as long when replayed. Where there are few enough pipelines all are driven.
docs/design/012 has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcdl.errors import UsageError
from hpcdl.planner.disturbance import Disturbance, Draws
from hpcdl.planner.pipeline import Span, simulate, timeline
from hpcdl.planner.replay import Order
from hpcdl.planner.space import Floats, Ints
from hpcdl.stage import Flow

_TOGETHER = 1 << 20  # operations that are drawn and replayed together, which bounds the memory
_DRIVEN = 1 << 19  # operations that are driven where nobody says how many, which bounds the time
_FEWEST = 32  # pipelines that are driven then, of however many operations
_MOST = 10**8  # pipelines of all steps: 8 bytes are kept of each


@dataclass(frozen=True)
class Replicas:
    """Equal pipelines that run beside each other, as they would be undisturbed.

    Attributes:
        flow: how each batch flows through each pipeline.
        forward: seconds of one microbatch's forward on each virtual stage.
        backward: the same for its whole backward, recomputation included.
        weight: what of ``backward`` is for gradients of weights, and is deferred if ``flow`` says so.
        hop: seconds that a message is under way.
        after: seconds of a step that follow the last backward; nothing disturbs them.
        count: pipelines.
        team: ranks of each stage, which do every operation together.
    """

    flow: Flow
    forward: Sequence[float]
    backward: Sequence[float]
    weight: Sequence[float]
    hop: float = 0.0
    after: float = 0.0
    count: int = 1
    team: int = 1

    def __post_init__(self) -> None:
        stages = self.flow.ranks * self.flow.chunks
        if any(len(seconds) != stages for seconds in (self.forward, self.backward, self.weight)):
            raise ValueError(f"forward, backward and weight need the seconds of each of {stages} stages")
        if self.count < 1 or self.team < 1:
            raise ValueError(f"there are no {self.count} pipelines of teams of {self.team} ranks")

    @property
    def undisturbed(self) -> float:
        """Seconds of a step in which nothing goes wrong."""
        return simulate(self.flow, self.forward, self.backward, self.weight, self.hop) + self.after

    def timeline(self) -> tuple[Span, ...]:
        """What every rank of one pipeline does and when, if nothing goes wrong."""
        return timeline(self.flow, self.forward, self.backward, self.weight, self.hop)


@dataclass(frozen=True, eq=False)
class StepTimes:
    """Seconds of simulated steps.

    Attributes:
        samples: of each step, shape (steps,).
        in_order: of the same steps had every rank kept the order of the undisturbed step, whatever came late,
            as a static schedule does.
        undisturbed: of a step in which nothing goes wrong.
        pipelines: how many were simulated in all.
        driven: how many of them by the state machine itself.
    """

    samples: Floats
    in_order: Floats
    undisturbed: float
    pipelines: int
    driven: int

    @property
    def mean(self) -> float:
        """Over the steps."""
        return float(self.samples.mean())

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the steps is done."""
        return float(np.quantile(self.samples, share))

    def to_json(self) -> dict[str, Any]:
        """The distribution in a few numbers."""
        quantiles = {f"p{percent}": self.quantile(percent / 100) for percent in (5, 50, 95, 99)}
        return {
            "undisturbed": self.undisturbed,
            "mean": self.mean,
            **quantiles,
            "in_order_mean": float(self.in_order.mean()),
            "steps": len(self.samples),
            "pipelines": self.pipelines,
            "driven": self.driven,
        }


def step_times(
    replicas: Replicas,
    disturbance: Disturbance,
    steps: int = 100,
    seed: int = 0,
    driven: int | None = None,
) -> StepTimes:
    """The distribution of the step time.

    Args:
        replicas: the pipelines.
        disturbance: what goes wrong.
        steps: how many to simulate; each has disturbances of its own.
        seed: the same seed, the same steps.
        driven: pipelines of all steps that the machine is driven for; with steps · replicas nothing is
            approximate. By default what takes a few seconds.

    Raises:
        UsageError: no steps, nothing driven, more pipelines than are kept, a negative seed, or pauses that
            are no rare events.
    """
    _check(replicas, steps, seed, driven)
    total = steps * replicas.count
    draws = Draws(disturbance, replicas.team, seed)
    order = Order.of(replicas.flow, replicas.timeline(), replicas.hop)
    wanted = min(total, driven or max(_FEWEST, _DRIVEN // len(order)))
    seconds, places, found = np.empty(total), [], []
    for begin, end in _blocks(total, max(1, _TOGETHER // len(order))):
        drawn = draws.seconds(order.seconds, order.ranks, end - begin)
        seconds[begin:end] = order.replay(drawn)
        many = wanted * end // total - wanted * begin // total
        for place in _pick(seconds[begin:end], many, draws.others):
            places.append(begin + place)
            found.append(order.drive(drawn[:, place]))
    in_order = seconds.reshape(steps, -1).max(axis=1) + replicas.after
    _correct(seconds, np.array(places), np.array(found), draws.others)
    samples = seconds.reshape(steps, -1).max(axis=1) + replicas.after
    return StepTimes(samples, in_order, replicas.undisturbed, total, wanted)


def _check(replicas: Replicas, steps: int, seed: int, driven: int | None) -> None:
    if steps < 1:
        raise UsageError(f"steps {steps}: a distribution needs at least one step", "ask for 100 of them")
    if driven is not None and driven < 1:
        raise UsageError(f"driven {driven}: some pipelines must be driven", "leave it out, or ask for 256")
    if seed < 0:
        raise UsageError(f"seed {seed} is negative", "choose one from 0 on")
    if steps * replicas.count > _MOST:
        raise UsageError(
            f"steps {steps} of {replicas.count} pipelines each are more than the {_MOST:,} that are kept",
            f"ask for at most {_MOST // replicas.count} steps",
        )


def _blocks(total: int, most: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + most, total)) for begin in range(0, total, most))


def _pick(seconds: Floats, many: int, rng: np.random.Generator) -> Ints:
    """Places of so many pipelines; the slower, the likelier: half of them are of the slowest sixteenth."""
    weights = np.arange(1, len(seconds) + 1) ** -0.75
    picked = rng.choice(len(seconds), many, replace=False, p=weights / weights.sum())
    places: Ints = np.argsort(-seconds)[picked]
    return places


def _correct(seconds: Floats, places: Ints, driven: Floats, rng: np.random.Generator) -> None:
    """Turn ``seconds`` of replayed pipelines into those of driven ones, given some of these."""
    order = np.argsort(seconds[places])
    known = seconds[places][order]
    ratios = driven[order] / known
    reach = len(places) // 16
    for begin, end in _blocks(len(seconds), _TOGETHER):
        part = seconds[begin:end]
        near = np.clip(np.searchsorted(known, part), reach, len(places) - 1 - reach)
        part *= ratios[near + rng.integers(-reach, reach, size=len(part), endpoint=True)]
    seconds[places] = driven
