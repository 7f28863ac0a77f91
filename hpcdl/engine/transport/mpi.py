"""mpi4py over the machine's MPI, for CPU tensors.

MPI has no bfloat16: Open MPI 5.0.11 sums bf16 buffers to wrong numbers without an error and MPICH
5.0.2 refuses them, so what is not fp32 or fp64 is reduced through fp32. Data that is only moved
travels as bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mpi4py import MPI

from hpcdl.engine.transport.base import Group, Handle, Reduction

_REDUCTIONS = {Reduction.SUM: MPI.SUM, Reduction.MAX: MPI.MAX}
_REDUCED_BY_MPI = (torch.float32, torch.float64, torch.int32, torch.int64)


def _bytes(tensor: torch.Tensor) -> Any:
    return [tensor.detach().view(-1).view(torch.uint8).numpy(), MPI.BYTE]


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
    """One rank's door to ``MPI.COMM_WORLD``, in a communicator of its own."""

    def __init__(self) -> None:
        self._world = MPI.COMM_WORLD.Dup()
        self.rank = self._world.Get_rank()
        self.ranks = self._world.Get_size()
        self._groups = {tuple(range(self.ranks)): Group(tuple(range(self.ranks)), self._world)}

    def group(self, ranks: tuple[int, ...]) -> Group:
        """The group of ``ranks``; only its members take part in making it."""
        if ranks not in self._groups:
            members = self._world.Get_group().Incl(list(ranks))
            self._groups[ranks] = Group(ranks, self._world.Create_group(members))
        return self._groups[ranks]

    def all_reduce(self, tensor: torch.Tensor, group: Group, reduction: Reduction = Reduction.SUM) -> Handle:
        """Reduce ``tensor`` in place over ``group``."""
        mine = tensor.detach()
        exact = mine.dtype in _REDUCED_BY_MPI
        wide = mine if exact else mine.float()
        request = group.channel.Iallreduce(MPI.IN_PLACE, wide.numpy(), _REDUCTIONS[reduction])
        return _Request(request, (mine, wide), None if exact else lambda: mine.copy_(wide))

    def all_gather(self, whole: torch.Tensor, shard: torch.Tensor, group: Group) -> Handle:
        """Fill the flat ``whole`` with every rank's flat ``shard``."""
        return _Request(group.channel.Iallgather(_bytes(shard), _bytes(whole)), (whole, shard))

    def reduce_scatter(self, shard: torch.Tensor, whole: torch.Tensor, group: Group) -> Handle:
        """Sum the flat ``whole`` over ``group`` and keep this rank's part in ``shard``."""
        mine, full = shard.detach(), whole.detach()
        exact = mine.dtype in _REDUCED_BY_MPI
        wide, total = (mine, full) if exact else (torch.empty_like(mine, dtype=torch.float32), full.float())
        request = group.channel.Ireduce_scatter_block(total.numpy(), wide.numpy(), MPI.SUM)
        return _Request(request, (mine, wide, total), None if exact else lambda: mine.copy_(wide))

    def broadcast(self, tensor: torch.Tensor, group: Group) -> Handle:
        """Copy ``tensor`` of the group's first rank to all others."""
        return _Request(group.channel.Ibcast(_bytes(tensor), root=0), (tensor,))

    def barrier(self) -> None:
        """Return when every rank of the run has come here."""
        self._world.Barrier()

    def send(self, tensor: torch.Tensor, peer: int, tag: int) -> Handle:
        """Send ``tensor`` to rank ``peer``."""
        return _Request(self._world.Isend(_bytes(tensor), dest=peer, tag=tag), (tensor,))

    def receive(self, buffer: torch.Tensor, peer: int, tag: int) -> Handle:
        """Receive what ``peer`` sends with ``tag`` into ``buffer``."""
        return _Request(self._world.Irecv(_bytes(buffer), source=peer, tag=tag), (buffer,))

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
        """Leave the run. MPI is finalised here, so the process may end in any way after."""
        self._groups.clear()
        MPI.Finalize()
