"""Everything that an estimate takes for granted, with where it comes from, and where nobody has looked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hpcdl.planner import memory
from hpcdl.planner.case import Case
from hpcdl.planner.fabric import Fabric
from hpcdl.planner.space import Candidates
from hpcdl.sites.profile import Profile
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.job import Overlap
from hpcdl.units import GB, GIB, TERA, format_bytes, format_count

_AMD = re.compile(r"\b(AMD|Instinct|MI\d{2,3}\w?)\b")
_AXES = ("x", "y", "z", "context", "data", "pipeline")
_TEXTS = ("source", "date", "products")
_ATTENTION = {
    "naive": "scores in memory, softmax apart",
    "fused": "scores in memory, softmax in one kernel",
    "flash": "scores never whole in memory",
}


@dataclass(frozen=True)
class Assumption:
    """One thing taken for granted."""

    group: str
    name: str
    value: str
    meaning: str
    source: str


def assumptions(case: Case, d: Decomposition) -> tuple[Assumption, ...]:
    """All that the estimate of ``d`` rests on, group by group."""
    profile = case.profile
    groups = (
        ("training", "the experiment", _training(case)),
        ("schedule", "the decomposition", _schedule(case, d)),
        ("engine", case.engine.source, _engine(case)),
        ("communication", "links of the site file, shares of the profile", _communication(case, d)),
        ("memory", "the site file and the profile", _memory(case)),
        ("machine", "the site file", _machine(case)),
        ("efficiencies", f"{profile.source} ({profile.date})", _efficiencies(profile)),
    )
    return tuple(
        Assumption(group, name, value, meaning, source)
        for group, source, rows in groups
        for name, value, meaning in rows
    )


def untested(case: Case, d: Decomposition) -> tuple[str, ...]:
    """Where no measured run has held the model to account, as far as ``d`` goes there."""
    return tuple(_untested(case, d))


def _untested(case: Case, d: Decomposition) -> Iterator[str]:
    device = case.node.device
    if case.on_cpu:
        yield "untested: CPUs other than the one that the profile was measured on"
    elif _AMD.search(device.model) or device.kind in ("gcd", "tile"):
        yield f"untested: {device.model}; its efficiencies are not held to measured steps"
    if (d.offload != "none" or d.offload_activations) and not case.one_memory:
        yield "untested: offload; no copy to or from a host was timed"
    if sum(degree > 1 for degree in (d.x, d.y, d.z)) > 1:
        yield "untested: grids with more than one of x, y and z"


_Rows = Iterator[tuple[str, str, str]]


def _training(case: Case) -> _Rows:
    model, training = case.model, case.training
    yield "parameters", format_count(model.parameters), f"{model.layers} layers, hidden {model.hidden}"
    yield "global batch", str(training.global_batch), "sequences an optimizer step"
    yield "sequence", str(model.sequence), "tokens; all sequences are full"
    yield "precision", training.precision, "weights, activations and messages"
    yield "model FLOPs", f"{model.train_flops:.4g}", "a sequence, forward and backward, without recomputation"


def _schedule(case: Case, d: Decomposition) -> _Rows:
    batch = case.training.global_batch
    yield "microbatches", str(d.microbatches(batch)), f"of {d.microbatch} x {case.model.sequence} tokens"
    in_flight = int(Candidates.of(d).in_flight(batch)[0])
    yield "in flight", str(in_flight), "microbatches in the pipeline at once"
    yield "rank order", d.order, "which of data and pipeline lies further inside; x, y, z are innermost"
    yield "recompute", d.recompute, "what the backward makes again"
    yield (
        "stages",
        str(d.pipeline * d.interleave),
        "runs of layers; the first ones get those that are left over",
    )


def _engine(case: Case) -> _Rows:
    recipe, kernel = case.engine.keeps.recipe(case.training.precision), case.attention
    yield "engine", case.engine.name, "what runs it"
    yield "attention", kernel, _ATTENTION[kernel]
    kept = f"{recipe.weights} + {recipe.gradients} + {recipe.optimizer}"
    yield "state", kept, "bytes a parameter: weights, gradients, main copy and moments; nothing shared"
    for name, field in Overlap.model_fields.items():
        yield f"overlap {name}", "yes" if getattr(case.beside, name) else "no", field.description or ""


def _communication(case: Case, d: Decomposition) -> _Rows:
    fabric = Fabric(case, Candidates.of(d))
    ranks = case.layout.ranks_per_node
    for axis in _AXES:
        degree = getattr(d, axis)
        if degree > 1:
            inner = int(fabric.inner(axis)[0])
            inside = case.layout.nodes == 1 or ranks % (inner * degree) == 0
            rate = float(fabric.bandwidth(axis)[0]) / GB
            where = "inside a node" if inside else "across nodes"
            yield f"link {axis}", f"{rate:.4g} GB/s", f"of a rank, groups of {degree}, {inner} apart, {where}"
    if not case.one_memory:
        yield "link host", f"{case.host_link / GB:.4g} GB/s", "of a rank, page-locked copies, one direction"


def _memory(case: Case) -> _Rows:
    yield "device", format_bytes(case.memory_bytes), "of a rank"
    yield "margin", f"{memory.MARGIN:.0%}", "left free of it, and of the host's"
    yield "slack", f"{case.profile.allocator_slack:.0%}", "reserved by the allocator beyond tensors"
    yield "framework", format_bytes(case.profile.context_gib * GIB), "before any tensor"
    yield "host", format_bytes(case.host_memory_bytes), "of a rank, beside the device's"


def _machine(case: Case) -> _Rows:
    node, network = case.node, case.network
    yield (
        "device",
        node.device.model,
        f"{case.layout.nodes} x {case.layout.ranks_per_node} of them, one a rank",
    )
    yield "peak", f"{case.peak_flops / TERA:.4g} TFLOP/s", f"of a rank in {case.training.precision}"
    yield "memory bandwidth", f"{node.device.memory_bandwidth:.4g} GB/s", "of a device"
    yield "link intra", f"{node.links.intra_node:.4g} GB/s", "of a device inside its node, one direction"
    yield "link inter", f"{node.links.inter_node:.4g} GB/s", "of a node into the network, one direction"
    if network.oversubscription != 1:
        yield "oversubscription", f"{network.oversubscription:g}", f"past {network.group_nodes} nodes"


def _efficiencies(profile: Profile) -> _Rows:
    for name, field in Profile.model_fields.items():
        if name not in _TEXTS:
            value = getattr(profile, name)
            shown = f"{value:.4g}" if isinstance(value, float | int) else str(value)
            yield name, shown, field.description or ""
