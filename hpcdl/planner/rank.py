"""Candidates with their estimates, which of them is best, and the best that differs along one axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpcdl.planner import memory, state
from hpcdl.planner.assumptions import untested
from hpcdl.planner.case import Case
from hpcdl.planner.compute import unmeasured
from hpcdl.planner.estimate import Term, memory_tree, step_tree
from hpcdl.planner.space import Bools, Candidates, Floats, Ints
from hpcdl.sites.measured import measured_products
from hpcdl.spec.decomposition import AXES, Decomposition
from hpcdl.units import GIB, TERA

CHOICES = {
    **{axis: axis for axis in AXES},
    "context": "context", "expert": "expert", "microbatch": "microbatch", "interleave": "interleave",
    "defer_weights": "defer_weights", "recompute": "recomputed", "recompute_every": "recompute_every",
    "zero": "zero", "sequence_parallel": "sequence_parallel", "order": "ordered", "offload": "offloaded",
    "offload_activations": "offload_activations",
}  # fmt: skip
"""What a rival can differ in, with the column that holds it."""

_DIGITS = 9  # steps that agree to so many digits are the same; the rest is rounding


def order(candidates: Candidates, step_seconds: Floats) -> Ints:
    """Positions from the fastest on.

    Of equal ones the simpler comes first: fewer axes in use, nothing offloaded, nothing recomputed, whole
    stages and backwards, nothing sharded; then smaller degrees in the order y, x, z, pipeline, data, and the
    larger microbatch.
    """
    c = candidates
    scale = 10.0 ** (_DIGITS - np.ceil(np.log10(step_seconds)))
    rounded = np.round(step_seconds * scale) / scale
    axes_used = sum((getattr(c, axis) > 1).astype(int) for axis in (*AXES, "context", "expert"))
    offloads = c.offloaded + c.offload_activations
    schedule = c.interleave + c.defer_weights
    keys = (
        -c.microbatch, c.data, c.pipeline, c.z, c.x, c.y, c.ordered, c.sequence_parallel, c.zero,
        c.recompute_every, schedule, c.recomputed, offloads, axes_used, rounded,
    )  # fmt: skip
    return np.lexsort(keys)  # the last key decides first


def rivals(candidates: Candidates, ordered: Ints) -> Iterator[tuple[str, int]]:
    """For each choice the place in ``ordered`` of the fastest that differs in it from the winner."""
    for choice, column in CHOICES.items():
        values = getattr(candidates, column)[ordered]
        differs = values != values[0]
        if differs.any():
            yield choice, int(np.argmax(differs))


def offloaded(d: Decomposition) -> str:
    """What ``d`` keeps in CPU memory, such as ``none`` or ``optimizer + activations``."""
    if not d.offload_activations:
        return d.offload
    return "activations" if d.offload == "none" else f"{d.offload} + activations"


@dataclass(frozen=True)
class Candidate:
    """One decomposition with its estimate."""

    rank: int  # 1 is the fastest
    decomposition: Decomposition
    step_seconds: float
    tokens_per_second: float
    tflops_per_gpu: float  # model FLOPs: recomputation does not count
    mfu: float
    memory_gib: float
    host_memory_gib: float  # of the rank, beside the device's
    breakdown: dict[str, float]  # seconds; they sum to step_seconds
    memory_breakdown: dict[str, float]  # GiB; they sum to memory_gib
    notes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()  # why it cannot run; only what was asked for by name is refused and kept

    def to_json(self) -> dict[str, Any]:
        """Plain values under documented names."""
        decomposition = self.decomposition.model_dump()
        return {
            **vars(self),
            "decomposition": decomposition,
            "notes": list(self.notes),
            "refusals": list(self.refusals),
        }


@dataclass(frozen=True)
class Pool:
    """Candidates that are compared with each other."""

    case: Case
    candidates: Candidates

    def __len__(self) -> int:
        return len(self.candidates)

    def pick(self, ordered: Ints, places: Sequence[int], drive: Bools | None = None) -> tuple[Candidate, ...]:
        """Those at ``places`` of ``ordered``, with their estimates; the first place is rank 1.

        ``drive`` is whose pipelines are driven on a clock, of all candidates; by default all that are picked.
        """
        positions = ordered[np.array(places, dtype=np.int64)]
        chosen = Pool(self.case, self.candidates.take(positions))
        estimates = _Estimates(
            step_tree(self.case, chosen.candidates, drive=drive is None or drive[positions]),
            memory_tree(memory.device_memory(self.case, chosen.candidates)),
            memory.host_memory(self.case, chosen.candidates),
        )
        found = (_candidate(chosen, estimates, position) for position in range(len(chosen)))
        return tuple(replace(one, rank=place + 1) for one, place in zip(found, places, strict=True))


@dataclass(frozen=True)
class _Estimates:
    """Seconds of a step, bytes on the device and bytes on the host, of each candidate of a pool."""

    step: Term
    device: Term
    host: Floats


def _candidate(pool: Pool, estimates: _Estimates, position: int) -> Candidate:
    case, step, held = pool.case, estimates.step, estimates.device
    decomposition = pool.candidates.decomposition(position)
    seconds = float(step.value[position])
    batch = case.training.global_batch
    flops_per_rank = case.model.train_flops * batch / case.layout.ranks / seconds
    return Candidate(
        rank=position + 1,
        decomposition=decomposition,
        step_seconds=seconds,
        tokens_per_second=batch * case.model.sequence / seconds,
        tflops_per_gpu=flops_per_rank / TERA,
        mfu=flops_per_rank / case.nominal_flops,
        memory_gib=float(held.value[position]) / GIB,
        host_memory_gib=float(estimates.host[position]) / GIB,
        breakdown={leaf.name: float(leaf.value[position]) for leaf in step.leaves()},
        memory_breakdown={leaf.name: float(leaf.value[position]) / GIB for leaf in held.leaves()},
        notes=_notes(case, decomposition),
    )


def _notes(case: Case, d: Decomposition) -> tuple[str, ...]:
    """What was assumed, so that nobody has to guess."""
    m = d.microbatches(case.training.global_batch)
    count = "1 microbatch" if m == 1 else f"{m} microbatches"
    notes = [f"{count} of {d.microbatch} x {case.model.sequence} tokens, {case.training.precision}"]
    if d.x * d.y * d.z > 1:
        notes.append("collectives along x, y and z count as far as no product hides them")
    if d.z > 1 or d.zero == 3:
        notes.append(f"weights over {'z' if d.z > 1 else 'data'} are gathered again every microbatch")
    if d.pipeline > 1 and case.model.layers % d.pipeline:
        notes.append(
            f"{case.model.layers} layers do not divide by {d.pipeline} stages; the first ones get one more"
        )
    notes += _savings_notes(case, d)
    if case.crowding > 1:
        ranks, cores = case.layout.ranks_per_node, case.node.usable_cores
        notes.append(
            f"{ranks} ranks take turns on {cores} cores: a check that it runs, not a fast way to train"
        )
    elif not case.on_cpu and case.layout.ranks_per_node < case.node.devices:
        notes.append(f"{case.layout.ranks_per_node} of {case.node.devices} devices of each node are used")
    notes += _efficiency_notes(case, d)
    notes += untested(case, d)
    return tuple(notes)


def _efficiency_notes(case: Case, d: Decomposition) -> list[str]:
    notes = [f"efficiencies: {case.profile.source} ({case.profile.date})"]
    measured, missed = measured_products(case.profile.products), unmeasured(case, Candidates.of(d))
    if measured is None:
        notes.append("products: by the formula, none was measured on such a device")
    elif missed:
        notes.append(
            f"products: by the formula for {', '.join(missed)}; none near was measured on {measured.device}"
        )
    else:
        notes.append(f"products: shapes measured on {measured.device} are near ({measured.source})")
    return notes


def _savings_notes(case: Case, d: Decomposition) -> list[str]:
    pruning, notes = case.training.pruning, []
    if (d.offload != "none" or pruning) and case.training.precision != "fp32":
        notes.append(f"gradients are kept and summed in {case.training.precision}, not fp32")
    if d.offload != "none" and case.one_memory:
        notes.append("device and host are one memory here: offload saves nothing")
    if pruning and state.begins_dense(pruning):
        notes.append(
            "time is that after the pruning; memory must be enough for the dense steps before it as well"
        )
    return notes
