"""What to say where something does not fit: which memory lacks how much, and the nearest that would do."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from hpcdl.errors import HpcdlError, InfeasibleError
from hpcdl.planner import memory, offload, rank
from hpcdl.planner.case import Case
from hpcdl.planner.choices import Space, judge
from hpcdl.planner.divisors import divisors, prime_factors
from hpcdl.planner.estimate import least_step
from hpcdl.planner.layout import spread
from hpcdl.planner.limits import MOST_DEVICES
from hpcdl.planner.offload import Judged
from hpcdl.planner.rank import Candidate, Pool
from hpcdl.planner.remedies import remedies
from hpcdl.planner.space import FULL, Candidates, Ints
from hpcdl.sites.site import Site
from hpcdl.spec.decomposition import AXES, RULES, Decomposition, violations
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.job import Layout
from hpcdl.spec.model import Model
from hpcdl.units import GIB

_NEIGHBOURS = 33  # device counts that are tried on either side when nothing fits
_FURTHEST = 128  # times as many devices are tried at most
_TRIED = 4096  # values on either side of one that breaks a rule
_VARIED = {
    "global_batch": "training.global_batch", "microbatch": "microbatch", "layers": "pipeline",
    "interleave": "interleave", "kv_heads": "x", "ffn": "x", "vocab": "x", "hidden": "y", "z shards": "z",
    "recompute_every": "recompute_every", "context": "context", "expert": "expert",
}  # fmt: skip
_CHANGES = ("recompute", "recompute_every", "microbatch", "zero", "offload", "offload_activations")


def too_big(case: Case, candidate: Candidate) -> str:
    """Which memory a candidate does not fit in, and what needs most of it."""
    device, host = memory.budget(case) / GIB, memory.host_budget(case) / GIB
    if candidate.memory_gib <= device and not case.one_memory:
        return (
            f"{candidate.decomposition} keeps {candidate.host_memory_gib:.2f} GiB a rank in host memory, but "
            f"{host:.2f} GiB of it are there after a margin of {memory.MARGIN:.0%}"
        )
    term, gib = max(candidate.memory_breakdown.items(), key=lambda item: item[1])
    beside = f" and {candidate.host_memory_gib:.1f} GiB of the same memory" if case.one_memory else ""
    return (
        f"{candidate.decomposition} needs {candidate.memory_gib:.2f} GiB a rank, most of it {term} "
        f"({gib:.1f} GiB){beside * (candidate.host_memory_gib > 0)}, but {device:.2f} GiB are there after a "
        f"margin of {memory.MARGIN:.0%}"
    )


def nearest(rule: str, d: Decomposition, model: Model, batch: int) -> str:
    """The nearest values that keep a rule which ``d`` breaks, to end a sentence with; empty where none do."""
    field = _VARIED.get(rule)
    if field is None:
        return ""
    holds = next(one.holds for one in RULES if one.name == rule)

    def keeps(value: int) -> bool:
        if field == "training.global_batch":
            return bool(holds(d, model, value))
        return bool(holds(d.model_copy(update={field: value}), model, batch))

    now = batch if field == "training.global_batch" else getattr(d, field)
    below = next(filter(keeps, range(now - 1, max(0, now - _TRIED), -1)), None)
    above = next(filter(keeps, range(now + 1, now + _TRIED)), None)
    found = " and ".join(str(value) for value in (below, above) if value)
    return f"; the nearest {field} that would do: {found}" if found else ""


def what_helps(case: Case, d: Decomposition) -> Iterator[str]:
    """The changes that make ``d`` fit where no single one does, and which offload does."""
    if not any(remedy.suffices for remedy in remedies(case, d)):
        yield from _several(case, d)
    yield from _offload_helps(case, d)


def _offload_helps(case: Case, d: Decomposition) -> Iterator[str]:
    """Which offload would make ``d`` fit, as advice; nothing where none does."""
    if case.one_memory:
        return
    for level in ("optimizer", "parameters"):
        lighter = d.model_copy(update={"offload": level})
        if memory.fits(case, Candidates.of(lighter))[0]:
            (found,) = Pool(case, Candidates.of(lighter)).pick(np.array([0]), [0])
            yield (
                f"with parallelism.offload: {level} it needs {found.memory_gib:.1f} GiB a rank and "
                f"{found.host_memory_gib:.1f} GiB of host memory, and fits"
            )
            return


def _several(case: Case, d: Decomposition) -> Iterator[str]:
    """The fewest changes together that make ``d`` fit; nothing where none do."""
    changed = _relaxations(case, d)
    lawful, _ = judge(changed, case.model, case.training.global_batch, case.engine)
    changed = changed.take(lawful)
    changed = changed.take(memory.fits(case, changed))
    if not len(changed):
        return
    one = Candidates.of(d)
    differ: Ints = np.sum([getattr(changed, name) != getattr(one, name)[0] for name in _CHANGES], axis=0)
    first = np.lexsort((least_step(case, changed), differ))[:1]
    (found,) = Pool(case, changed).pick(first, [0])
    words = ", ".join(
        f"parallelism.{name}: {_plain(getattr(found.decomposition, name))}"
        for name in _CHANGES
        if getattr(found.decomposition, name) != getattr(d, name)
    )
    host = f" and {found.host_memory_gib:.1f} GiB of host memory" if found.host_memory_gib else ""
    yield f"with {words} it needs {found.memory_gib:.1f} GiB a rank{host}, and fits"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _relaxations(case: Case, d: Decomposition) -> Candidates:
    """``d`` with every combination of what saves memory and leaves its degrees as they are."""
    levels = offload.offload_levels(case)
    smaller = [size for size in divisors(d.microbatch) if size <= d.microbatch]
    ways = product(range(3), smaller, {d.zero, min(1, d.data - 1)}, levels, (False, True))
    chosen = [way for way in ways if way[0] == FULL or not way[4]]
    recomputed, sizes, zero, away, activations = (np.array(column) for column in zip(*chosen, strict=True))
    every = np.where(recomputed == FULL, d.recompute_every, 1)
    same = Candidates.of(d).take(np.zeros(len(chosen), dtype=np.int64))
    return same.having(
        recomputed=recomputed, microbatch=sizes, zero=zero, offloaded=away, offload_activations=activations,
        recompute_every=every,
    )  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Which numbers of devices something fits on."""

    experiment: Experiment
    site: Site
    case: Case

    @property
    def nearest(self) -> list[int]:
        """The nearest below and above what was asked for."""
        asked = self.case.layout.ranks
        below = [*range(asked - 1, max(0, asked - _NEIGHBOURS), -1)]
        found = (
            next(filter(self.work, side), None) for side in (below, range(asked + 1, asked + _NEIGHBOURS))
        )
        return [count for count in found if count]

    @property
    def fewest(self) -> int | None:
        """The fewest above what was asked for, of numbers whose prime factors are 2, 3 and 5."""
        asked = self.case.layout.ranks
        smooth = [count for count in _smooth(min(asked * _FURTHEST, MOST_DEVICES)) if count > asked]
        if not smooth or not self.work(smooth[-1]):
            return next(filter(self.work, reversed(smooth[-4:-1])), None)
        return smooth[bisect_left(smooth, 1, key=self.work)]

    def work(self, gpus: int) -> bool:
        """Whether anything fits on ``gpus`` devices of the same kind, one sequence at a time."""
        try:
            layout = default_layout(self.experiment, self.site, gpus)
        except HpcdlError:
            return False
        case = replace(self.case, layout=layout)
        grids = Space(gpus, case.model, case.training.global_batch, case.engine).grids
        sharded = np.minimum(1, grids.data - 1)
        leanest = Candidates.joined([grids, grids.having(recomputed=FULL, zero=sharded)])
        return bool(offload.variants(case, leanest).fitting.any())


def default_layout(experiment: Experiment, site: Site, gpus: int) -> Layout:
    """Where so many devices lie: as ``resources`` says, or on the fewest nodes."""
    asked = experiment.resources
    if asked.gpus == gpus:
        return spread(asked, site)
    return spread(asked.model_copy(update=dict(gpus=gpus, nodes=None)), site)


def nothing_fits(sizes: Sizes, refused: dict[str, int], leanest: list[Judged]) -> InfeasibleError:
    """That nothing can run, mostly why, what came closest, and which numbers of devices work."""
    dominant = max(refused, key=lambda name: refused[name])
    counts = ", ".join(f"{name} {count}" for name, count in refused.items())
    case = sizes.case
    message = (
        f"none of {sum(refused.values())} decompositions of {sizes.experiment.name} over {case.layout.ranks} "
        f"devices of {sizes.site.name} can run; most are refused by {dominant} ({counts})"
    )
    if broken := _not_this_engine(case):
        return InfeasibleError(f"{message}\n{broken}", "plan for an engine that can with --engine any")
    for judged in leanest:
        one = Pool(case, judged.candidates).pick(np.array([0]), [0])[0]
        held = rank.offloaded(one.decomposition)
        words = "" if held == "none" else f" with offload {held}"
        message += f"\nthe leanest{words}, {too_big(case, one)}"
    message += _prime(case)
    near = sizes.nearest
    if not any(count > case.layout.ranks for count in near):
        near += [count for count in (sizes.fewest,) if count]
    counts = ", ".join(map(str, near))
    way_out = (
        f"the nearest device counts that work: {counts}" if near else "no device count near this one works"
    )
    return InfeasibleError(message, f"{way_out}; or change training.global_batch or the model")


def _not_this_engine(case: Case) -> str:
    """What of the model the engine cannot run however it is spread, which other engines may."""
    plain, model, batch = Decomposition(), case.model, case.training.global_batch
    return "; ".join(
        rule.explain(plain, model, batch) for rule in case.engine.rules if not rule.holds(plain, model, batch)
    )


def _prime(case: Case) -> str:
    """Why no axis can be as long as a prime factor of the number of devices, where that is so."""
    largest = prime_factors(case.layout.ranks)[-1]
    reasons = []
    for axis in AXES:
        d = Decomposition.model_validate({axis: largest})
        broken = violations(d, case.model, case.training.global_batch, case.engine.rules)
        if not broken:
            return ""
        reasons.append(f"{axis}: {next(iter(broken.values()))}")
    return f"\nno axis can take {largest}, a prime factor of {case.layout.ranks}: " + "; ".join(reasons)


def _smooth(most: int) -> list[int]:
    """Numbers up to ``most`` without prime factors other than 2, 3 and 5."""
    exponents = range(most.bit_length())
    numbers = (2**a * 3**b * 5**c for a, b, c in product(exponents, repeat=3))
    return sorted(number for number in numbers if number <= most)
