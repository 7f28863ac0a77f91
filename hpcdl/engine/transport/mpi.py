"""mpi4py over the machine's MPI.

MPI has no bfloat16: Open MPI 5.0.11 sums bf16 buffers to wrong numbers without an error and MPICH
5.0.2 refuses them, so what is not fp32 or fp64 is reduced through fp32. Data that is only moved
travels as bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mpi4py import MPI

from hpcdl.engine.transport.base import Group, Handle, Reduction
from hpcdl.engine.transport.host import Memory
from hpcdl.engine.transport.progress import Repeated
from hpcdl.errors import EngineError

_REDUCTIONS = {Reduction.SUM: MPI.SUM, Reduction.MAX: MPI.MAX}
_REDUCED_BY_MPI = (torch.float32, torch.float64, torch.int32, torch.int64)


def _buffer(tensor: torch.Tensor) -> Any:
    # NumPy views are cheaper to hand over than tensors; GPU memory has none.
    return tensor if tensor.is_cuda else tensor.numpy()


def _bytes(tensor: torch.Tensor) -> Any:
    return [_buffer(tensor.detach().view(-1).view(torch.uint8)), MPI.BYTE]


def _reducible(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or its values in fp32 where MPI cannot be trusted to add its type."""
    return tensor if tensor.dtype in _REDUCED_BY_MPI else tensor.float()


class _Request:
    """An MPI request; ``tensors`` stay alive until it is finished, then ``after`` runs once."""

    def __init__(
        self, request: Any, tensors: tuple[torch.Tensor, ...], after: Callable[[], object] | None = None
    ) -> None:
        self.request = request
        self._tensors = tensors
        self._after = after

    def wait(self) -> None:
        self.request.Wait()
        if self._after:
            self._after()
        self._tensors, self._after = (), None


class MpiTransport:
    """One rank's door to ``MPI.COMM_WORLD``, in a communicator of its own.

    Args:
        memory: where MPI reads and writes.
        apart: ranks also wait in other runtimes, so a thread must see to it that messages move meanwhile.

    Raises:
        EngineError: ``apart`` with a library that allows one thread only.
    """

    def __init__(self, memory: Memory, *, apart: bool = False) -> None:
        self._memory = memory
        self._world = MPI.COMM_WORLD.Dup()
        self.rank = self._world.Get_rank()
        self.ranks = self._world.Get_size()
        self.name = MPI.Get_library_version().splitlines()[0]
        everyone = tuple(range(self.ranks))
        self._groups = {(everyone, ""): Group(everyone, self._world)}
        self._progress = Repeated(self._look) if apart else None
        if apart and MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise EngineError(
                f"{self.name} does not let two threads call it, which transport mixed needs",
                "use communication.transport: mpi, or dist, or a library with MPI_THREAD_MULTIPLE",
            )

    def _look(self) -> None:
        """Enter the library, which moves whatever waits to be moved."""
        self._world.Iprobe()

    def group(self, ranks: tuple[int, ...], lane: str = "") -> Group:
        """The group of ``ranks``; only its members take part in making it. A lane is a communicator."""
        if (ranks, lane) not in self._groups:
            members = self._world.Get_group().Incl(list(ranks))
            self._groups[ranks, lane] = Group(ranks, self._world.Create_group(members))
        return self._groups[ranks, lane]

    def connect(self, peers: Sequence[int]) -> None:
        """MPI needs nothing."""

    def all_reduce(self, tensor: torch.Tensor, group: Group, reduction: Reduction = Reduction.SUM) -> Handle:
        """Reduce ``tensor`` in place over ``group``."""
        mine = tensor.detach()
        wide = _reducible(mine)
        room = self._memory.outgoing(wide)
        request = group.channel.Iallreduce(MPI.IN_PLACE, _buffer(room), _REDUCTIONS[reduction])
        return _Request(request, (room,), lambda: self._home(mine, wide, room))

    def all_gather(self, whole: torch.Tensor, shard: torch.Tensor, group: Group) -> Handle:
        """Fill the flat ``whole`` with every rank's flat ``shard``."""
        mine, room = self._memory.outgoing(shard), self._memory.incoming(whole)
        request = group.channel.Iallgather(_bytes(mine), _bytes(room))
        return _Request(request, (mine, room), lambda: self._memory.back(whole, room))

    def reduce_scatter(self, shard: torch.Tensor, whole: torch.Tensor, group: Group) -> Handle:
        """Sum the flat ``whole`` over ``group`` and keep this rank's part in ``shard``."""
        mine, total = shard.detach(), self._memory.outgoing(_reducible(whole.detach()))
        wide = torch.empty_like(mine, dtype=total.dtype)
        room = self._memory.incoming(wide)
        request = group.channel.Ireduce_scatter_block(_buffer(total), _buffer(room), MPI.SUM)
        return _Request(request, (total, room), lambda: self._home(mine, wide, room))

    def _home(self, mine: torch.Tensor, wide: torch.Tensor, room: torch.Tensor) -> None:
        self._memory.back(wide, room)
        if wide is not mine:
            mine.copy_(wide)

    def broadcast(self, tensor: torch.Tensor, group: Group) -> Handle:
        """Copy ``tensor`` of the group's first rank to all others."""
        room = self._memory.outgoing(tensor.detach())
        request = group.channel.Ibcast(_bytes(room), root=0)
        return _Request(request, (room,), lambda: self._memory.back(tensor, room))

    def barrier(self) -> None:
        """Return when every rank of the run has come here."""
        self._world.Barrier()

    def send(self, tensor: torch.Tensor, peer: int, tag: int) -> Handle:
        """Send ``tensor`` to rank ``peer``."""
        self._move()
        room = self._memory.outgoing(tensor.detach())
        return _Request(self._world.Isend(_bytes(room), dest=peer, tag=tag), (room,))

    def receive(self, buffer: torch.Tensor, peer: int, tag: int) -> Handle:
        """Receive what ``peer`` sends with ``tag`` into ``buffer``."""
        self._move()
        room = self._memory.incoming(buffer)
        request = self._world.Irecv(_bytes(room), source=peer, tag=tag)
        return _Request(request, (room,), lambda: self._memory.back(buffer, room))

    def _move(self) -> None:
        if self._progress and not self._progress.is_alive():
            self._progress.start()

    def first(self, receives: Sequence[Handle]) -> int:
        """Wait until one of the posted ``receives`` is finished, and say which."""
        posted = [receive for receive in receives if isinstance(receive, _Request)]
        index = int(MPI.Request.Waitany([receive.request for receive in posted]))
        posted[index].wait()
        return index

    def arrived(self, receives: Sequence[Handle]) -> int | None:
        """Which of the posted ``receives`` is finished, if any is; returns at once."""
        posted = [receive for receive in receives if isinstance(receive, _Request)]
        index, finished = MPI.Request.Testany([receive.request for receive in posted])
        if not finished or index == MPI.UNDEFINED:
            return None
        posted[index].wait()
        return int(index)

    def close(self) -> None:
        """Leave the run. MPI is finalised here, while all that it needs still stands."""
        if self._progress:
            self._progress.stop()
        self._groups.clear()
        MPI.Finalize()


def cuda_aware() -> bool:
    """Whether the library says that it reads GPU memory; one that cannot be asked is taken not to.

    MPICH and Open MPI both answer ``MPIX_Query_cuda_support``.
    """
    question = getattr(ctypes.CDLL(MPI.__file__), "MPIX_Query_cuda_support", None)
    return question is not None and bool(question())
