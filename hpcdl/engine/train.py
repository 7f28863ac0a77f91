"""Training: open the door to the other ranks, then step by step to the end."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from hpcdl.engine.checkpoint.sharded import Checkpoints
from hpcdl.engine.data.loader import Batches, Portion, Share
from hpcdl.engine.data.prefetch import prefetched
from hpcdl.engine.data.prepare import Prepared, agreed
from hpcdl.engine.evaluation import mean_loss
from hpcdl.engine.learner import Learner, Outcome
from hpcdl.engine.metrics import Recorder
from hpcdl.engine.optim.schedule import learning_rate
from hpcdl.engine.ranks import Place
from hpcdl.engine.rendezvous import meet
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.base import Transport
from hpcdl.engine.transport.dist import DistTransport
from hpcdl.errors import EngineError
from hpcdl.run_folder import RunFolder
from hpcdl.spec.decomposition import violations
from hpcdl.spec.experiment import ResolvedRun
from hpcdl.telemetry import StepRecord


def train(run: ResolvedRun, folder: RunFolder, attempt: int, place: Place) -> None:
    """Train from the newest checkpoint, or from the start, to the last step."""
    refuse_impossible(run)
    device = claim_device(run, place)
    transport = open_transport(run, folder, attempt, place)
    recorder = Recorder(folder, attempt, place)
    Training(run, folder, transport, recorder, device).run(place)
    transport.barrier()
    transport.close()


def refuse_impossible(run: ResolvedRun) -> None:
    """Stop before anything starts what the model or the engine cannot do.

    Raises:
        EngineError: naming every broken rule; ``resolved.json`` was changed or comes from elsewhere.
    """
    experiment = run.experiment
    broken = violations(run.decomposition, experiment.model, experiment.training.global_batch)
    if broken:
        raise EngineError(
            f"the decomposition {run.decomposition} cannot run: {'; '.join(broken.values())}",
            "submit the experiment again; hpcdl plan shows the decompositions that can",
        )


def claim_device(run: ResolvedRun, place: Place) -> torch.device:
    """The device this rank computes on, and as many threads as the layout gives it cores."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(run.layout.cores_per_rank)
    if run.device == "cpu":
        return torch.device("cpu")
    index = 0 if run.device_per_rank else place.local_rank
    if index >= torch.cuda.device_count():
        raise EngineError(
            f"rank {place.rank} needs CUDA device {index} on {place.host}, but torch sees "
            f"{torch.cuda.device_count()}",
            "check gpus per node and device_per_rank in the site file, and that torch is a CUDA build",
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def open_transport(run: ResolvedRun, folder: RunFolder, attempt: int, place: Place) -> Transport:
    """The door to the other ranks, as the experiment asks for it."""
    if run.experiment.communication.transport == "mpi":
        return _open_mpi(run, place)
    store = meet(place, run.rendezvous, folder.rendezvous(attempt))
    return DistTransport(store, place.rank, place.world_size, torch.device(run.device))


def _open_mpi(run: ResolvedRun, place: Place) -> Transport:
    if run.device != "cpu":
        raise EngineError(
            f"transport mpi carries CPU tensors only, but this run computes on {run.device}",
            "set communication.transport: dist",
        )
    # Importing mpi4py.MPI initialises MPI, which a run over torch.distributed must not do.
    from hpcdl.engine.transport.mpi import MpiTransport

    transport = MpiTransport()
    if (transport.rank, transport.ranks) != (place.rank, place.world_size):
        raise EngineError(
            f"MPI says rank {transport.rank} of {transport.ranks}, the launcher says rank {place.rank} of "
            f"{place.world_size}",
            "the launcher and the MPI library do not speak to each other: check the --mpi= flag of srun",
        )
    return transport


def _share(topology: Topology) -> Share:
    """What a rank takes of every batch."""
    reads = topology.is_first or topology.is_last
    return Share(topology.batch_shard, topology.decomposition.batch_shards, reads)


@dataclass
class _Progress:
    """How far training has come."""

    step: int = 0
    loss: float = float("nan")


class Training:
    """The loop of one rank."""

    def __init__(
        self,
        run: ResolvedRun,
        folder: RunFolder,
        transport: Transport,
        recorder: Recorder,
        device: torch.device,
    ) -> None:
        self._experiment = run.experiment
        self._settings = run.experiment.training
        self._transport = transport
        self._recorder = recorder
        prepared = Prepared(folder.data, run.experiment.data, run.experiment.model)
        worker = ThreadPoolExecutor(max_workers=1)
        making = worker.submit(prepared.make if transport.rank == 0 else int)
        self._learner = Learner(run.experiment, run.decomposition, transport, device)
        world = self._learner.groups.world
        sources = prepared.open(agreed(making, lambda number: world.agree(number, device)))
        worker.shutdown()
        self._batches = Batches(sources, run.experiment, _share(self._learner.topology))
        self._held_out = self._batches.held_out() if run.experiment.evaluation.every else []
        self._tokens = self._settings.global_batch * run.experiment.model.sequence
        self._checkpoints = Checkpoints(
            folder.checkpoints, run.decomposition, transport.rank, run.experiment.checkpoint.keep
        )
        self._progress = _Progress()

    def run(self, place: Place) -> None:
        """Every step that is left."""
        self._restore()
        self._announce(place)
        steps = range(self._progress.step + 1, self._settings.steps + 1)
        with prefetched(self._batches.rows, steps, self._experiment.data.prefetch) as batches:
            for step, rows in zip(steps, batches, strict=True):
                self._step(step, rows)
                every = self._experiment.checkpoint.every
                if every and (step % every == 0 or step == steps[-1]):
                    self._save()
        self._recorder.event("finished", step=self._progress.step, loss=self._progress.loss)

    def _step(self, step: int, rows: Portion) -> None:
        start = time.perf_counter()
        rate = learning_rate(self._settings.optimizer, step, self._settings.steps)
        outcome = self._learner.step(step, rows.inputs_BL, rows.targets_BL, rate, rows.counted)
        self._progress = _Progress(step, outcome.loss)
        seconds = time.perf_counter() - start
        self._record(outcome, rate, seconds, self._validation_loss(step))

    def _validation_loss(self, step: int) -> float | None:
        """On the held-out sequences, after the steps that end with an evaluation."""
        if not self._experiment.evaluation.due(step, self._settings.steps):
            return None
        loss = mean_loss(self._learner, self._held_out)
        self._recorder.event("evaluated", step=step, loss=loss)
        return loss

    def _record(self, outcome: Outcome, rate: float, seconds: float, validation_loss: float | None) -> None:
        self._recorder.step(
            StepRecord(
                step=self._progress.step,
                loss=outcome.loss,
                tokens=self._tokens,
                step_seconds=seconds,
                tokens_per_second=self._tokens / seconds,
                grad_norm=outcome.grad_norm,
                learning_rate=rate,
                time=time.time(),
                validation_loss=validation_loss,
            )
        )

    def _announce(self, place: Place) -> None:
        first_of_host = torch.tensor([float(place.local_rank == 0)], device=self._learner.device)
        self._learner.groups.world.all_reduce(first_of_host).wait()
        self._recorder.event(
            "started",
            ranks=place.world_size,
            hosts=int(first_of_host.item()),
            parameters=self._experiment.model.parameters,
            steps=self._settings.steps,
        )

    def _save(self) -> None:
        progress = self._progress
        tensors = {part.name: part.tensors for part in self._learner.parts()}
        state = {"loss": progress.loss, "tensors": tensors, "counters": self._learner.counters()}
        self._checkpoints.save(progress.step, state, self._transport.barrier)
        self._recorder.event("checkpoint", step=progress.step)

    def _restore(self) -> None:
        world = self._learner.groups.world
        found = self._checkpoints.newest(lambda step: world.agree(step, self._learner.device))
        if found is not None:
            step, state = found
            for part in self._learner.parts():
                for name, tensor in part.tensors.items():
                    tensor.copy_(state["tensors"][part.name][name])
            self._learner.restored(state["counters"])
            self._progress = _Progress(step, state["loss"])
