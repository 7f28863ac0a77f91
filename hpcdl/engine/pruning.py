"""Pruning while training goes on: masks are drawn between two steps, and the learner is pruned by them.

Magnitudes are those of the fp32 masters. Weights of one magnitude stay or go together, so a little more than
asked may go; what is gone stays gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod

import torch

from hpcdl.engine.checkpoint.choosing import Chosen
from hpcdl.engine.checkpoint.restoring import Target, fill, whole_of
from hpcdl.engine.learner import Learner
from hpcdl.engine.log import say
from hpcdl.engine.sparse.kept import Kept
from hpcdl.engine.sparse.masks import largest_of_each, prunable, refuse_width
from hpcdl.engine.sparse.schedule import due, missed, sparsity_after
from hpcdl.engine.sparse.threshold import Row, thresholds
from hpcdl.engine.sparse.tickets import Tickets
from hpcdl.engine.tensor.parameters import Held, Part
from hpcdl.errors import EngineError
from hpcdl.spec.training import BREAK_EVEN, Pruning

TICKETS = "tickets"  # the kind of tensor, and the counter, of the search for one


class Pruner:
    """What one rank prunes, and when.

    Args:
        settings: how.
        learner: that is pruned; all ranks prune theirs together.
        report: told by rank 0 of every pruning.

    Raises:
        EngineError: nothing can be pruned, or a pattern of names or of N:M does not fit the model.
    """

    def __init__(self, settings: Pruning, learner: Learner, report: Callable[..., None]) -> None:
        self._settings = settings
        self._learner = learner
        self._report = report
        self._sizes = {
            name: prod(learner.shapes[name]) for name in prunable(learner.shapes, settings.exclude)
        }
        self._held = [held for held in learner.stage.held if held.name in self._sizes]
        self._tickets = Tickets(settings.masks)
        self._pruned = False
        if settings.pattern is not None:
            for held in self._held:
                refuse_width(held.name, held.sharding.block_shape(learner.topology)[1], settings.pattern)
        if settings.sparsity < BREAK_EVEN and learner.topology.rank == 0:
            say(_warning(settings.sparsity))

    def parts(self) -> list[Part]:
        """What must be kept of the learner, with the masks that the search for a ticket remembers."""
        return [self._remembering(part) for part in self._learner.parts()]

    def _remembering(self, part: Part) -> Part:
        history = self._tickets.history.get(part.name)
        if history is None:
            return part
        start = part.sharding.span(self._learner.topology).start
        own = history[part.span.start - start : part.span.stop - start]
        return replace(part, tensors=part.tensors | {TICKETS: own})

    def counters(self) -> dict[str, float]:
        """What else must be kept; the same on all ranks."""
        return {TICKETS: self._tickets.drawn} if self._tickets.drawn else {}

    def restore(self, found: Chosen) -> None:
        """Go on with a learner that was brought to where the checkpoint ``found`` left it."""
        self._pruned = found.manifest.pruned
        drawn = int(found.manifest.counters.get(TICKETS, 0))
        if drawn and self._settings.schedule == "early-bird":
            self._tickets.drawn = min(drawn, self._settings.masks)
            room = {held.name: torch.zeros_like(held.parameter, dtype=torch.uint8) for held in self._held}
            self._tickets.history = {name: history.view(-1) for name, history in room.items()}
            fill(found.folder, found.manifest, self._targets())

    def _targets(self) -> list[Target]:
        history, topology = self._tickets.history, self._learner.topology
        return [whole_of(held, topology, {TICKETS: history[held.name]}) for held in self._held]

    def begin(self, step: int) -> None:
        """Catch up where training begins after ``step``, which may be 0, the start."""
        if (step == 0 and due(self._settings, 0)) or (missed(self._settings, step) and not self._pruned):
            self._act(step)

    def act(self, step: int) -> None:
        """Prune after ``step`` what the schedule says."""
        if due(self._settings, step) and not (self._pruned and self._settings.schedule == "early-bird"):
            self._act(step)

    def _act(self, step: int) -> None:
        masks = self._draw(sparsity_after(self._settings, step))
        if self._settings.schedule == "early-bird" and not self._found(step, masks):
            return
        sparsity = self._sparsity(masks)
        self._learner.prune({name: Kept.of(mask) for name, mask in masks.items()})
        self._pruned = True
        self._tickets = Tickets(self._settings.masks)
        self._report("pruned", step=step, sparsity=sparsity)
        if self._learner.topology.rank == 0:
            say(f"pruned after step {step}: sparsity {sparsity:.4f}")

    def _found(self, step: int, masks: Mapping[str, torch.Tensor]) -> bool:
        """Whether the early-bird ticket is found, now that ``masks`` were drawn."""
        self._tickets.add(masks)
        counted = [held.name for held in self._held if held.is_first(self._learner.topology)]
        differing = self._tickets.differing(counted, self._learner.groups.world, self._learner.device)
        full = self._tickets.drawn == self._settings.masks
        agree = full and differing < self._settings.distance * sum(self._sizes.values())
        return agree or missed(self._settings, step)

    def _draw(self, sparsity: float) -> dict[str, torch.Tensor]:
        """Flat masks of this rank's matrices; what is pruned is in none."""
        limits = {} if self._settings.pattern else self._limits(sparsity)
        masks: dict[str, torch.Tensor] = {}
        for held in self._held:
            master, kept = self._master(held), self._learner.kept.get(held.name)
            mask = self._of_each(held, master) if self._settings.pattern else master.abs() > limits[held.name]
            masks[held.name] = mask if kept is None else mask & kept.mask
        return masks

    def _limits(self, sparsity: float) -> dict[str, float]:
        """The threshold of every matrix of the model."""
        together = self._settings.scope == "global"
        sizes = {"": sum(self._sizes.values())} if together else self._sizes
        rows = {name: Row(size, round(sparsity * size)) for name, size in sizes.items()}
        for name, weights in self._learner.counted():
            if name in self._sizes:
                rows["" if together else name].weights.append(weights)
        found = thresholds(list(rows.values()), self._learner.groups.world, self._learner.device)
        limits = dict(zip(rows, found, strict=True))
        return {name: limits["" if together else name] for name in self._sizes}

    def _of_each(self, held: Held, master: torch.Tensor) -> torch.Tensor:
        """N of every M of one matrix. Its block is brought together over z, as a group may lie across two."""
        assert self._settings.pattern is not None  # noqa: S101 - for mypy
        sharding, topology = held.sharding, self._learner.topology
        block = self._learner.groups.z.gather(master).wait() if sharding.flat else master
        mask = largest_of_each(block.view(sharding.block_shape(topology)), self._settings.pattern)
        return mask.view(-1)[sharding.span(topology)].clone()

    def _master(self, held: Held) -> torch.Tensor:
        """The fp32 weights of a matrix as this rank holds it, flat, with zeros where it is pruned."""
        values, kept = self._learner.master(held), self._learner.kept.get(held.name)
        if kept is None:
            return values
        dense = values.new_zeros(kept.elements)
        kept.expand(dense, values, 0)
        return dense

    def _sparsity(self, masks: Mapping[str, torch.Tensor]) -> float:
        """That of all matrices together.

        Raises:
            EngineError: nothing would be left of one.
        """
        learner, place = self._learner, {name: index for index, name in enumerate(self._sizes)}
        counts = torch.zeros(len(place), dtype=torch.int64, device=learner.device)
        for held in self._held:
            if held.is_first(learner.topology):
                counts[place[held.name]] = masks[held.name].sum()
        learner.groups.world.all_reduce(counts).wait()
        for name, left in zip(self._sizes, counts.tolist(), strict=True):
            if not left:
                raise EngineError(
                    f"training.pruning: sparsity {self._settings.sparsity:g} leaves nothing of {name}",
                    "lower it, or exclude the matrix",
                )
        return 1 - float(counts.sum().item()) / sum(self._sizes.values())


def _warning(sparsity: float) -> str:
    pruned = 24 * (1 - sparsity) + 2
    return (
        f"warning: training.pruning.sparsity {sparsity:g} is below {BREAK_EVEN}: training pruned takes "
        f"{pruned:g} bytes a parameter of the pruned matrices, training whole 20"
    )
