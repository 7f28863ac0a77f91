"""What a rank holds at the fullest moment of a step, and whether it fits.

The peak is that of the fullest stage at its fullest moment (``moments``), so what is never there together is
never added. On top of tensors come the allocator's slack, the framework's context and communicators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hpcdl.planner import state
from hpcdl.planner.activations import Layer, boundary
from hpcdl.planner.case import Case
from hpcdl.planner.moments import TENSORS, MomentName, StageName, moments, stages
from hpcdl.planner.space import Bools, Candidates, Floats, Ints
from hpcdl.spec.decomposition import Decomposition
from hpcdl.units import GIB

TERMS = (*TENSORS, "allocator slack", "framework", "communicators")
"""In this order they sum to the device's memory; those of ``moments.TENSORS`` are allocated."""

MARGIN = 0.05
"""Share of a memory that a plan leaves free."""


def device_memory(case: Case, c: Candidates) -> dict[str, Floats]:
    """Bytes by TERMS at the fullest moment of the fullest stage.

    With pruning, at the time that needs most: before it or after.
    """
    nothing: dict[str, Floats] = {term: np.zeros(len(c)) for term in TENSORS}
    fullest, most = nothing, np.full(len(c), -1.0)
    for moment in moments(case, c):
        tensors = total(moment.tensors)
        more = tensors > most
        most = np.where(more, tensors, most)
        fullest = {term: np.where(more, moment.tensors.get(term, 0.0), fullest[term]) for term in TENSORS}
    return {**fullest, **_beyond_tensors(case, c, most)}


def device_bytes(case: Case, c: Candidates) -> Floats:
    """All of ``device_memory`` together, without the parts."""
    most = np.zeros(len(c))
    for moment in moments(case, c):
        np.maximum(most, total(moment.tensors), out=most)
    return most + total(_beyond_tensors(case, c, most))


def _beyond_tensors(case: Case, c: Candidates, allocated: Floats) -> dict[str, Floats]:
    """What comes on top of ``allocated`` bytes.

    An allocator keeps freed blocks for later, but where the device is full it gives them back before it gives
    up, so its slack is no more than there is room for.
    """
    framework = np.full(len(c), case.profile.context_gib * GIB)
    communicators = _communicators(case, c)
    room = case.memory_bytes - 1 - framework - communicators - allocated  # a byte less than rounding may add
    slack = np.minimum(case.profile.allocator_slack * allocated, np.maximum(room, 0.0))
    return {"allocator slack": slack, "framework": framework, "communicators": communicators}


@dataclass(frozen=True)
class Peak:
    """The fullest moment of one stage."""

    stage: StageName
    moment: MomentName
    bytes: float  # of the device


def by_stage(case: Case, d: Decomposition) -> tuple[Peak, ...]:
    """Peaks of the first stage, of the fullest between if it may be fuller, and of the last, fullest first.

    A pipeline of one stage has its last only.
    """
    c = Candidates.of(d)
    fullest: dict[StageName, Peak] = {}
    for moment in moments(case, c):
        allocated = total(moment.tensors)
        device = float((allocated + total(_beyond_tensors(case, c, allocated)))[0])
        if moment.stage not in fullest or device > fullest[moment.stage].bytes:
            fullest[moment.stage] = Peak(moment.stage, moment.name, device)
    return tuple(sorted(fullest.values(), key=lambda peak: -peak.bytes))


def host_memory(case: Case, c: Candidates) -> Floats:
    """Bytes that the rank which offloads most keeps in the memory of its host."""
    if not (c.offloaded.any() or c.offload_activations.any()):
        return np.zeros(len(c))
    layer = Layer.of(case, c)
    held = [
        state.on_host(case, c, stage.shard, sparsity)
        + c.offload_activations * layer.boundaries(c, stage.shard.layers, stage.held)
        for stage in stages(case, c)
        for sparsity in state.phases(case)
    ]
    most: Floats = np.max(held, axis=0)
    return most


def need(case: Case, c: Candidates) -> Floats:
    """What is needed of the scarcer of device and host memory, as a share of what a plan may use of it."""
    device, host = device_bytes(case, c), host_memory(case, c)
    if case.one_memory:
        return device / budget(case) + host / budget(case)
    scarcer: Floats = np.maximum(device / budget(case), host / host_budget(case))
    return scarcer


def fits(case: Case, c: Candidates) -> Bools:
    """Whether device and host hold everything with the margin free."""
    verdict: Bools = need(case, c) <= 1
    return verdict


def may_fit(case: Case, c: Candidates) -> Bools:
    """Whether the device might hold some schedule of these, whatever lies between checkpoints.

    It does not if it holds them not even with one microbatch in flight and checkpoints on the host. Of those
    the device has the one in use and the next; few and far between it may have only one.
    """
    leanest = c.having(asked_in_flight=1, defer_weights=False, recompute_every=1)
    leanest = leanest.having(offload_activations=c.full_recompute)
    spare = c.full_recompute * boundary(case, c) * (1 + case.profile.allocator_slack)
    verdict: Bools = total(device_memory(case, leanest)) - spare <= budget(case)
    return verdict


def total(memory: Mapping[str, Floats]) -> Floats:
    """Bytes of all terms together."""
    together: Floats = sum(memory.values(), np.zeros(()))
    return together


def budget(case: Case) -> float:
    """Bytes of a rank's memory that a plan may use."""
    return case.memory_bytes * (1 - MARGIN)


def host_budget(case: Case) -> float:
    """Bytes of its host's memory that a rank may use in a plan."""
    return case.host_memory_bytes * (1 - MARGIN)


def _communicators(case: Case, c: Candidates) -> Floats:
    """Buffers of collectives: of each axis that has any, and where several are in use of groups over those.

    Stages send to each other, which takes far less (NVIDIA/nccl issue 1450: one buffer for all channels).
    """
    collective: Ints = np.sum([axis > 1 for axis in (c.x, c.y, c.z, c.context, c.data)], axis=0)
    several = collective + (c.pipeline > 1) > 1
    return case.profile.communicator_gib * GIB * (collective + case.engine.keeps.groups * several)
