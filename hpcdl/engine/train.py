"""Training: open the door to the other ranks, then step by step to the end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.distributed.distributed_c10d import Store

from hpcdl.engine.board import Board, check_tensorboard
from hpcdl.engine.census import census
from hpcdl.engine.clock import clock_of
from hpcdl.engine.data.loader import Portion, Share
from hpcdl.engine.data.prefetch import prefetched
from hpcdl.engine.data.reading import Reading
from hpcdl.engine.evaluation import mean_loss
from hpcdl.engine.keeping import Keeper, Progress
from hpcdl.engine.learner import Learner
from hpcdl.engine.metrics import Meter, Recorder
from hpcdl.engine.opening import open_runtimes, prove_all, through
from hpcdl.engine.optim.schedule import learning_rate
from hpcdl.engine.post import Post
from hpcdl.engine.preflight.checking import Preflight, Subject
from hpcdl.engine.preflight.recording import noting_suspects
from hpcdl.engine.pruning import Pruner
from hpcdl.engine.pulse import Pulse
from hpcdl.engine.ranks import Place
from hpcdl.engine.rendezvous import meet
from hpcdl.engine.request import Request
from hpcdl.engine.timeline import PHASE, Timeline, seconds_by_category
from hpcdl.engine.topology import Topology
from hpcdl.engine.trace import Tracer
from hpcdl.engine.transport.observed import Observed
from hpcdl.engine.update import Outcome, Step
from hpcdl.engine.watchdog import Fail, Watchdog
from hpcdl.errors import EngineError
from hpcdl.run_folder import RunFolder
from hpcdl.spec.decomposition import violations
from hpcdl.spec.experiment import ResolvedRun
from hpcdl.telemetry import StepRecord


def train(run: ResolvedRun, folder: RunFolder, attempt: int, place: Place, fail: Fail) -> None:
    """Train from the newest checkpoint, or from the start, to the last step.

    Args:
        run: what is asked for.
        folder: of the run.
        attempt: which one this is.
        place: this rank.
        fail: ends this process, called by a thread that watches whether it goes on.
    """
    refuse_impossible(run)
    recorder = Recorder(folder, attempt, place)
    with noting_suspects(folder, attempt):
        store, preflight = _enter(Subject(run, folder, place, recorder))
        device = claim_device(run, place)
        runtimes = open_runtimes(run, place, device, store)
        transport = Observed(through(runtimes), Timeline(clock_of(device)))
        pulse = Pulse(transport.timeline, on_device=device.type != "cpu")
        boards = [Board(folder.tensorboard)] if run.experiment.metrics.tensorboard and place.rank == 0 else []
        recorder.tell(pulse, *boards)
        with Watchdog(run.experiment, place, Post(folder, attempt), pulse, fail):
            prove_all(runtimes.values(), run, device, transport.timeline)
            if preflight:
                preflight.measure(transport, device)
            Training(run, folder, transport, recorder, device).run(place)
            transport.barrier()
    transport.close()


def _enter(subject: Subject) -> tuple[Store, Preflight | None]:
    """Meet the other ranks and look at who is where; returns where they met, and who looks on."""
    run, attempt = subject.run, subject.recorder.attempt
    store = meet(subject.place, run.rendezvous, subject.folder.rendezvous(attempt))
    if run.experiment.health.preflight == "off":
        return store, None
    preflight = Preflight(subject, store)
    preflight.look()
    return store, preflight


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
    if experiment.metrics.tensorboard:
        check_tensorboard()


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


def _share(topology: Topology) -> Share:
    """What a rank takes of every batch."""
    reads = topology.is_first or topology.is_last
    return Share(topology.batch_shard, topology.decomposition.batch_shards, reads)


class Training:
    """The loop of one rank."""

    def __init__(
        self,
        run: ResolvedRun,
        folder: RunFolder,
        transport: Observed,
        recorder: Recorder,
        device: torch.device,
    ) -> None:
        self._experiment = run.experiment
        self._settings = run.experiment.training
        self._recorder = recorder
        self._timeline = transport.timeline
        reading = Reading(run.experiment, folder.data, first=transport.rank == 0)
        self._learner = Learner(run.experiment, run.decomposition, transport, device, self._timeline)
        world = self._learner.groups.world
        self._batches = reading.batches(
            lambda number: world.agree(number, device), _share(self._learner.topology)
        )
        self._held_out = self._batches.held_out() if run.experiment.evaluation.every else []
        self._meter = Meter(run, device)
        self._tracer = Tracer(run, folder, transport)
        self._tokens = self._settings.global_batch * run.experiment.row_tokens
        pruning = run.experiment.training.pruning
        self._pruner = Pruner(pruning, self._learner, recorder.event) if pruning else None
        self._keeper = Keeper(run.experiment, folder.checkpoints, self._learner, recorder.event, self._pruner)
        self._request = Request(folder.request(recorder.attempt) if transport.rank == 0 else None)
        self._stop = False
        self._progress = Progress()

    def run(self, place: Place) -> None:
        """Every step that is left."""
        self._progress = self._keeper.restore()
        self._announce(place)
        if self._pruner:
            self._pruner.begin(self._progress.step)
        steps = range(self._progress.step + 1, self._settings.steps + 1)
        with prefetched(self._batches.rows, steps, self._experiment.data.prefetch) as batches:
            for step in steps:
                self._tracer.begin(step)
                self._step(step, batches)
                if self._pruner:
                    self._pruner.act(step)
                self._save(step)
                self._tracer.end(step)
                if self._stop:
                    break
        with self._timeline.span(PHASE, "checkpoint"):
            self._keeper.join()
        self._keeper.check_saved()
        ended = "finished" if self._progress.step == self._settings.steps else "paused"
        self._recorder.event(ended, step=self._progress.step, loss=self._progress.loss)

    def _save(self, step: int) -> None:
        every = self._experiment.checkpoint.every
        due = every and (step % every == 0 or step == self._settings.steps)
        if due or (self._stop and step < self._settings.steps):
            with self._timeline.span(PHASE, "checkpoint"):
                self._keeper.save(self._progress)

    def _step(self, step: int, batches: Iterator[Portion]) -> None:
        start = time.perf_counter()
        with self._timeline.span(PHASE, "data"):
            rows = next(batches)
        rate = learning_rate(self._settings.optimizer, step, self._settings.steps)
        asked = Step(step, rate, self._request.made())
        outcome = self._learner.step(asked, rows.inputs_BL, rows.targets_BL, rows.counted)
        self._stop = outcome.stop
        self._progress = Progress(step, outcome.loss)
        record = self._record(outcome, rate, time.perf_counter() - start)
        taken = self._timeline.take()
        measured = self._meter.complete(record, seconds_by_category(taken.spans))
        self._recorder.step(replace(measured, validation_loss=self._validation_loss(step)))
        self._tracer.keep(taken)

    def _validation_loss(self, step: int) -> float | None:
        """On the held-out sequences, after the steps that end with an evaluation."""
        if not self._experiment.evaluation.due(step, self._settings.steps):
            return None
        with self._timeline.span(PHASE, "evaluation"):
            loss = mean_loss(self._learner, self._held_out)
        self._recorder.event("evaluated", step=step, loss=loss)
        return loss

    def _record(self, outcome: Outcome, rate: float, seconds: float) -> StepRecord:
        return StepRecord(
            step=self._progress.step,
            loss=outcome.loss,
            tokens=self._tokens,
            step_seconds=seconds,
            tokens_per_second=self._tokens / seconds,
            grad_norm=outcome.grad_norm,
            learning_rate=rate,
            time=time.time(),
            attempt=self._recorder.attempt,
        )

    def _announce(self, place: Place) -> None:
        first_of_host = torch.tensor([float(place.local_rank == 0)], device=self._learner.device)
        self._learner.groups.world.all_reduce(first_of_host).wait()
        self._recorder.event(
            "started",
            ranks=place.world_size,
            hosts=int(first_of_host.item()),
            parameters=self._learner.parameters,
            steps=self._settings.steps,
            step=self._progress.step,
            groups=self._groups(),
        )
        if self._learner.offload:
            self._recorder.event("offload", **self._learner.offload)

    def _groups(self) -> dict[str, int]:
        """How many groups rank 0 made, and how many there are; every rank's are counted from its topology."""
        found = census(self._learner.topology.decomposition, tied=self._experiment.tied)
        return {"rank_0": self._learner.groups.made, "world": found.distinct}
