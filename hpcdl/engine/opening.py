"""Opening the door to the other ranks: they start the runtimes asked for, and then see them add."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.distributed.distributed_c10d import Store

from hpcdl.engine.ranks import Place
from hpcdl.engine.timeline import Timeline
from hpcdl.engine.transport.base import Transport
from hpcdl.engine.transport.dist import DistTransport
from hpcdl.engine.transport.host import Direct, Staged
from hpcdl.engine.transport.probe import prove
from hpcdl.engine.transport.routed import Routed, split
from hpcdl.errors import EngineError
from hpcdl.spec.experiment import ResolvedRun

# What is summed: gradients in fp32, the loss and the norm in fp64, activations in the type of computation.
_ALWAYS = (torch.float32, torch.float64)
_COMPUTED = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def open_runtimes(run: ResolvedRun, place: Place, device: torch.device, store: Store) -> dict[str, Transport]:
    """What reaches the other ranks, as the experiment asks for it, by name.

    All ranks have met first, whatever the runtime: MPI would wait for a missing one in silence, for ever.

    Args:
        run: what is asked for.
        place: this rank.
        device: where it computes.
        store: where they met.

    Raises:
        EngineError: a runtime that cannot be started as it should.
    """
    asked = run.experiment.communication.transport
    return {name: _OPEN[name](run, place, device, store) for name in _RUNTIMES[asked]}


def through(runtimes: Mapping[str, Transport]) -> Transport:
    """The one door through all of them."""
    if len(runtimes) == 1:
        return next(iter(runtimes.values()))
    return Routed(dict(runtimes), split(messages="mpi", collectives="dist"))


def prove_all(
    runtimes: Iterable[Transport], run: ResolvedRun, device: torch.device, timeline: Timeline
) -> None:
    """Let each of ``runtimes`` add over all ranks, for the first time.

    Raises:
        EngineError: one does not do what it should.
    """
    dtypes = (*_ALWAYS, _COMPUTED[run.experiment.training.precision])
    for runtime in runtimes:
        with timeline.waiting("adding over all ranks"):
            prove(runtime, run.decomposition.ranks, dtypes, device)


def _open_dist(run: ResolvedRun, place: Place, device: torch.device, store: Store) -> Transport:
    seconds = run.experiment.communication.timeout_seconds
    return DistTransport(store, (place.rank, place.world_size), device, seconds)


def _open_mpi(run: ResolvedRun, place: Place, device: torch.device, _: Store) -> Transport:
    asked = run.experiment.communication
    with _no_longer_than(run.rendezvous.timeout_seconds):
        # Importing mpi4py.MPI initialises MPI, which a run over torch.distributed must not do.
        from hpcdl.engine.transport.mpi import MpiTransport, cuda_aware

        aware = cuda_aware() if asked.cuda_aware == "auto" else asked.cuda_aware
        memory = Direct() if device.type == "cpu" or aware else Staged()
        transport = MpiTransport(memory, apart=asked.transport == "mixed")
    if (transport.rank, transport.ranks) != (place.rank, place.world_size):
        raise EngineError(
            f"MPI says rank {transport.rank} of {transport.ranks}, the launcher says rank {place.rank} of "
            f"{place.world_size}",
            "the launcher and the MPI library do not speak to each other: check the --mpi= flag of srun",
        )
    return transport


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """End this process with its stacks in the log if this takes longer.

    MPI_Init holds the interpreter, so no thread of Python's could end it.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


_OPEN = {"dist": _open_dist, "mpi": _open_mpi}
# In the order in which they are closed: a Gloo group that outlived MPI's end has been seen to abort.
_RUNTIMES = {"dist": ("dist",), "mpi": ("mpi",), "mixed": ("dist", "mpi")}
