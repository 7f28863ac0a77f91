"""What offloading costs in time, and which candidates it is worth trying for.

Per microbatch: with ``offload: parameters`` the weights of every layer come over the host link in forward and
again in backward, and their gradient, not yet compressed, goes back; with ``offload_activations`` what full
recomputation keeps goes in forward and comes back in backward. All of it runs beside the layer before or
after, so what counts is what takes longer than the layer; the link carries both directions at once.

Per step: weights are updated on the device, which fetches 12 bytes a parameter and writes them back, two
buckets at a time, so that each goes through half of that and of the computing; or on the host, whose cores
stream what an update reads and writes while gradients go down and weights come up. ``training.offload_step``
decides, or else the faster. Weights that live on the host are updated there; to be summed over data their
gradients go to the device and back, which nothing hides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcdl.planner import activations, comm, compute, memory, state
from hpcdl.planner.case import Case
from hpcdl.planner.fabric import Fabric
from hpcdl.planner.space import Bools, Candidates, Floats

_FETCHED = 12  # bytes of main copy and moments, one way
_STREAMED = 40  # bytes of memory that an update on cores takes a parameter, as the profile of a CPU has it


@dataclass(frozen=True)
class Copies:
    """Seconds of copies to and from the host a microbatch, each direction beside the other."""

    forward: Floats
    backward: Floats


def layer(case: Case, c: Candidates) -> Copies:
    """Those of one layer."""
    elements = sum(matrix.rows * matrix.columns for matrix in case.model.layer_matrices) / c.tensor
    kept = c.offload_activations * activations.boundary(case, c) / c.recompute_every
    return _copies(case, c, elements, kept)


def vocabulary(case: Case, c: Candidates) -> Copies:
    """Those of the embedding, or the head."""
    elements = case.model.vocab * case.model.hidden / c.tensor
    return _copies(case, c, elements, np.zeros(len(c)))


def _copies(case: Case, c: Candidates, elements: Floats, kept: Floats) -> Copies:
    weights = (c.offloaded == state.PARAMETERS) * elements * case.element_bytes
    # In backward the gradient goes the other way and is no larger than the weight that comes.
    return Copies(np.maximum(weights, kept) / case.host_link, (weights + kept) / case.host_link)


def update(case: Case, c: Candidates, elements: Floats) -> Floats:
    """Seconds in which so many ``elements`` a rank are updated whose state lies on the host."""
    computed = case.crowding * compute.optimizer(case, elements)
    fetched = elements * _FETCHED / case.host_link
    gradient = state.gradient_bytes(case, c, state.sparsity(case))
    moved = elements * (gradient + case.element_bytes) / case.host_link
    streamed = case.crowding * elements * _STREAMED / case.host_rate
    ways = {
        "device": np.maximum(computed, fetched + computed / 2),
        "host": np.maximum(moved, streamed),
    }
    chosen = ways.get(case.training.offload_step, np.minimum(ways["device"], ways["host"]))
    resident = np.where(c.data > 1, moved + streamed, ways["host"])
    return np.where(c.offloaded == state.PARAMETERS, resident, chosen)


def compression(case: Case, c: Candidates) -> Floats:
    """Seconds a microbatch in which one layer's gradients lose what is pruned.

    The whole gradient and the index are read, and what is kept is added to what was there.
    """
    gone = state.sparsity(case)
    if not gone:
        return np.zeros(len(c))
    traffic = state.pruned_layer(case, c) * (case.element_bytes + (1 - gone) * (4 + 3 * case.element_bytes))
    return traffic / case.memory_rate


def expansion(case: Case, pruned: Floats) -> Floats:
    """Seconds in which so many ``pruned`` elements a rank get their new weights back among the zeros."""
    gone = state.sparsity(case)
    traffic = pruned * (case.element_bytes + (1 - gone) * (4 + case.element_bytes)) if gone else 0 * pruned
    return traffic / case.memory_rate


@dataclass(frozen=True)
class Judged:
    """Candidates, and what they need of the memory there is, as ``memory.need`` has it."""

    candidates: Candidates
    need: Floats

    @property
    def fitting(self) -> Bools:
        """Those that fit."""
        verdict: Bools = self.need <= 1
        return verdict

    @classmethod
    def of(cls, case: Case, candidates: Candidates) -> Judged:
        """Judge them."""
        return cls(candidates, memory.need(case, candidates))

    def take(self, index: NDArray[Any]) -> Judged:
        """Those at ``index`` (positions, or a mask)."""
        return Judged(self.candidates.take(index), self.need[index])

    @classmethod
    def joined(cls, *parts: Judged) -> Judged:
        """One list of several."""
        candidates = Candidates.joined([part.candidates for part in parts])
        return cls(candidates, np.concatenate([part.need for part in parts]))


def offload_levels(case: Case) -> tuple[int, ...]:
    """What there is to choose from: nothing is gained where device and host are one memory."""
    return (0,) if case.one_memory else (0, state.OPTIMIZER, state.PARAMETERS)


def variants(
    case: Case, plain: Candidates, levels: tuple[int, ...] | None = None, *, activations: bool = False
) -> Judged:
    """``plain`` and, where it can matter, the same with something offloaded, or with fewer checkpoints.

    Nothing faster is left out. The optimizer's state is offloaded where a candidate does not fit otherwise,
    or where sending gradients in the model's type may save more than the update takes longer. Parameters are
    offloaded only where that is not enough: it costs more of everything but device memory.

    Args:
        case: what is trained, and where.
        plain: candidates without offload.
        levels: what there is to choose from, ascending; by default all that can gain something.
        activations: whether all of them keep activations on the host.
    """
    first, *more = levels or offload_levels(case)
    found = [_thinned(case, Judged.of(case, plain.offloading(first, activations=activations)))]
    for level in more:
        last = found[-1]
        faster = may_be_faster(case, last.candidates, level)
        lacking = last.candidates.take(~last.fitting | faster).having(offloaded=level, recompute_every=1)
        found.append(_thinned(case, Judged.of(case, lacking)))
    return Judged.joined(*found)


def may_be_faster(case: Case, c: Candidates, level: int) -> Bools:
    """Where offloading ``level`` may be faster than one level less.

    Parameters are updated on the host, which costs at least what the host's update of offloaded state costs;
    where state must be updated on the device, that might be faster.
    """
    if level == state.OPTIMIZER:
        return _may_pay(case, c)
    return np.full(len(c), case.training.offload_step == "device")


def _thinned(case: Case, judged: Judged) -> Judged:
    """The same, where full recomputation does not fit with the fewest layers between checkpoints that do.

    That costs no time: every layer is computed again once, however many checkpoints there are.
    """
    c, need = judged.candidates, judged.need.copy()
    # Two checkpoints and one layer are the least that any spacing keeps.
    lacking = np.flatnonzero((need > 1) & c.full_recompute & ~c.offload_activations)
    lacking = lacking[memory.may_fit(case, c.take(lacking))]
    every = c.recompute_every.copy()
    layers = np.maximum(*state.layers_of_stages(case, c.take(lacking)))
    for apart in range(2, int(layers.max(initial=1)) + 1):
        tried = lacking[(need[lacking] > 1) & (layers % apart == 0)]
        if len(tried):
            thinner = Judged.of(case, c.take(tried).having(recompute_every=apart))
            fits = tried[thinner.fitting]
            every[fits], need[fits] = apart, thinner.need[thinner.fitting]
    return Judged(c.having(recompute_every=every), need)


def _may_pay(case: Case, c: Candidates) -> Bools:
    """Where offloading the optimizer's state saves communication that outweighs its slower update.

    The rest of a step is the same, and at most the whole saving is exposed.
    """
    lean = c.offloading(state.OPTIMIZER)  # activations do not matter here
    verdict: Bools = _unhidden(case, c) > _unhidden(case, lean)
    return verdict


def _unhidden(case: Case, c: Candidates) -> Floats:
    fabric = Fabric(case, c)
    elements = largest_shard(case, c)
    own = elements / c.owners
    changed = np.where(c.offloaded > 0, update(case, c, own), case.crowding * compute.optimizer(case, own))
    reduction, _ = comm.gradient_reduction(fabric, elements)
    return reduction + comm.tied_embedding(fabric) + changed


def largest_shard(case: Case, c: Candidates) -> Floats:
    """Elements that the rank with most of them trains."""
    shards = [state.shard(case, c, is_last=end) for end in (False, True)]
    if case.engine.tables:
        shards.append(state.inner_shard(case, c))
    most: Floats = np.max([state.kept(held, state.sparsity(case)) for held in shards], axis=0)
    return most
