"""What a run keeps of itself and goes on from: the checkpoints of a learner."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpcdl.engine.checkpoint.choosing import Chosen, Jury, prepare
from hpcdl.engine.checkpoint.completing import Desk
from hpcdl.engine.checkpoint.manifest import Manifest
from hpcdl.engine.checkpoint.restoring import fill, masks_of, targets_of
from hpcdl.engine.checkpoint.saving import Saver
from hpcdl.engine.checkpoint.shapes import refuse_other_meaning, refuse_other_model
from hpcdl.engine.checkpoint.starting import start_from
from hpcdl.engine.learner import Learner
from hpcdl.engine.pruning import Pruner
from hpcdl.engine.sparse.kept import Kept
from hpcdl.errors import EngineError
from hpcdl.spec.experiment import Experiment


@dataclass(frozen=True)
class Progress:
    """How far training has come."""

    step: int = 0
    loss: float = float("nan")


class Keeper:
    """The checkpoints of one run as one rank sees them; all ranks make theirs at the same point.

    Args:
        experiment: its model, and how its state is kept.
        checkpoints: the folder of all of them.
        learner: what is kept.
        report: called with the kind of an event and its details; ranks other than 0 need not keep it.
        pruner: of the learner, if it has one.

    Raises:
        EngineError: the folder cannot be written, although it should be.
    """

    def __init__(
        self,
        experiment: Experiment,
        checkpoints: Path,
        learner: Learner,
        report: Callable[..., None],
        pruner: Pruner | None = None,
    ) -> None:
        self._experiment = experiment
        self._checkpoints = checkpoints
        self._learner = learner
        self._report = report
        self._pruner = pruner
        settings, world = experiment.checkpoint, learner.groups.world
        if settings.every and learner.topology.rank == 0:
            prepare(checkpoints)
        attempt = world.agree(secrets.randbits(31), learner.device)
        self._desk = Desk(checkpoints, attempt, settings.keep)
        self._saver = Saver(self._desk, learner.topology, settings, report, learner.timeline)

    def save(self, progress: Progress) -> None:
        """Begin a checkpoint of the learner as it is now; it may go on at once."""
        searched = self._pruner.counters() if self._pruner else {}
        head = Manifest(
            step=progress.step,
            loss=progress.loss,
            counters=self._learner.counters() | searched,
            model=self._experiment.model,
            decomposition=self._learner.topology.decomposition,
        )
        self._saver.save(head, (self._pruner or self._learner).parts())

    def join(self) -> None:
        """Return when the last checkpoint has come to an end, good or bad; on rank 0 that of all ranks."""
        self._saver.join()

    def check_saved(self) -> None:
        """Refuse to end well, on rank 0, where the last checkpoint has failed.

        Raises:
            EngineError: what was trained since the one before it would be lost in silence.
        """
        failed = self._saver.failed
        if failed is not None:
            raise EngineError(
                f"the last checkpoint could not be written: rank {failed.rank}: {failed.reason}",
                "make room, or mend the file system; hpcdl resume goes on from the checkpoint before",
            )

    def restore(self) -> Progress:
        """Bring the learner to where the newest sound checkpoint left it, else to the weights to start from.

        Raises:
            EngineError: there are checkpoints, but none is sound, or weights are of another model.
        """
        learner = self._learner
        jury = Jury(learner.groups.world, learner.device, self._report)
        found = jury.newest(self._checkpoints)
        if found is not None:
            return self._go_on(found)
        if self._experiment.checkpoint.start is not None:
            path = Path(self._experiment.checkpoint.start)
            start_from(path, self._experiment.shape, learner.parts(), learner.topology, jury)
            learner.restored(learner.counters())
        return Progress()

    def _go_on(self, found: Chosen) -> Progress:
        learner, model, manifest = self._learner, self._experiment.model, found.manifest
        self._desk.damaged.update(found.damaged)
        refuse_other_model(str(found.folder), manifest.shapes(), learner.shapes)
        refuse_other_meaning(str(found.folder), manifest.model, model)
        if manifest.pruned:
            masks = masks_of(found.folder, manifest, learner.stage.held, learner.topology)
            learner.prune({name: Kept.of(mask.to(learner.device)) for name, mask in masks.items()})
        fill(found.folder, manifest, targets_of(learner.parts(), learner.topology))
        learner.restored(manifest.counters)
        if self._pruner is not None:
            self._pruner.restore(found)
        return Progress(manifest.step, manifest.loss)
