"""torch.distributed: Gloo for CPU tensors, NCCL for CUDA tensors."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from hpcdl.engine.transport.base import LANES, Group, Handle, Reduction
from hpcdl.engine.transport.watching import Watch, Watchers
from hpcdl.errors import PeerLostError

_REDUCTIONS = {Reduction.SUM: dist.ReduceOp.SUM, Reduction.MAX: dist.ReduceOp.MAX}
_POLL_SECONDS = 50e-6
_LEAVE_SECONDS = 30.0  # how long a rank that is done waits for the others to be done
_LOST = re.compile(
    r"gloo/transport|pair closure|connection (was likely )?(closed|reset|refused)|remote worker|NCCL error|"
    r"broken pipe|wait timeout",  # of a store that is gone, and of one that waits for another rank
    re.IGNORECASE,
)
# Gloo says the second of what waits while another operation of the same pair has timed out.
_STUCK = re.compile(r"timed out|application timeout|wait timeout", re.IGNORECASE)


@contextmanager
def _blaming_the_lost() -> Iterator[None]:
    """Turn what torch says when a connection breaks into an error that names it a consequence."""
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        said = str(error).splitlines()[0]
        if _STUCK.search(said):
            raise PeerLostError(
                f"another rank did not come in time: {said}",
                "look at the end of each rank's log for the one that is stuck; "
                "communication.timeout_seconds says how long to wait",
            ) from error
        raise PeerLostError(
            f"another rank went away: {said}", "the exit records name the rank that failed first"
        ) from error


class _Work:
    """A torch work object; ``watch`` lets a thread wait for it so that several can be raced."""

    def __init__(self, work: Any) -> None:
        self.work = work
        self._watched: Watch | None = None
        self._finished = False

    def watch(self, watchers: Watchers) -> Watch:
        if self._watched is None:
            self._watched = watchers.watch(self.work.wait)
        return self._watched

    def wait(self) -> None:
        if self._finished:
            return
        with _blaming_the_lost():
            if self._watched is None:
                self.work.wait()
            else:
                self._watched.result()
        self._finished = True


class DistTransport:
    """One rank's door to a torch.distributed world.

    Args:
        store: where the ranks met.
        place: this rank, and how many there are.
        device: CPU means Gloo, CUDA means NCCL.
        timeout_seconds: how long one operation may wait for a rank that is there but does not come.
    """

    def __init__(
        self, store: Store, place: tuple[int, int], device: torch.device, timeout_seconds: float
    ) -> None:
        self.rank, ranks = place
        self._store = store
        self._ranks = ranks
        self._cuda = device.type == "cuda"
        backend = "nccl" if self._cuda else "gloo"
        self.name = f"torch {torch.__version__} with {backend}"
        with _blaming_the_lost():
            dist.init_process_group(
                backend,
                store=store,
                rank=self.rank,
                world_size=ranks,
                timeout=timedelta(seconds=timeout_seconds),
                device_id=device if self._cuda else None,
            )
        everyone = tuple(range(ranks))
        self._groups: dict[tuple[tuple[int, ...], str], Group] = {
            (everyone, ""): Group(everyone, dist.group.WORLD)
        }
        self._made = 0
        self._lanes: dict[tuple[tuple[int, int], int], Any] = {}
        # Polling a Gloo receive never reports it finished, but a wait returns at once; so two
        # receives are raced by two waiting threads, one a direction.
        self._watchers = Watchers(threads=2)

    def group(self, ranks: tuple[int, ...], lane: str = "") -> Group:
        """The group of ``ranks``; only its members take part in making it. A lane is a communicator."""
        if (ranks, lane) not in self._groups:
            self._groups[ranks, lane] = Group(ranks, self._communicator(ranks))
        return self._groups[ranks, lane]

    def _communicator(self, ranks: Sequence[int]) -> Any:
        # torch names it by its ranks and by how many this rank has made: members that have made unequally
        # many would wait for each other under different names, for ever.
        self._made += 1
        with _blaming_the_lost():
            return dist.new_group(list(ranks), use_local_synchronization=True)

    def connect(self, peers: Sequence[int]) -> None:
        """Make communicators for messages, where the runtime needs them.

        NCCL runs what two ranks say to each other in one order on one stream, so a posted receive would block
        the send behind it: each lane of each direction gets a communicator of its own. All ranks make those
        of their pairs in the order of the pairs, so nobody waits in a circle.
        """
        if not self._cuda:
            return
        for low, high in sorted({(min(self.rank, peer), max(self.rank, peer)) for peer in peers}):
            self._catch_up(low + high - self.rank)
            for way in product(((low, high), (high, low)), range(LANES)):
                self._lanes[way] = self._communicator((low, high))

    def _catch_up(self, peer: int) -> None:
        """Make as many groups as ``peer`` has made, alone where this rank has made fewer."""
        pair = f"{min(self.rank, peer)}-{max(self.rank, peer)}"
        with _blaming_the_lost():
            self._store.set(f"made/{pair}/{self.rank}", str(self._made))
            behind = int(self._store.get(f"made/{pair}/{peer}")) - self._made
        for _ in range(behind):
            self._communicator((self.rank,))

    def all_reduce(self, tensor: torch.Tensor, group: Group, reduction: Reduction = Reduction.SUM) -> Handle:
        """Reduce ``tensor`` in place over ``group``."""
        with _blaming_the_lost():
            return _Work(dist.all_reduce(tensor, _REDUCTIONS[reduction], group.channel, async_op=True))

    def all_gather(self, whole: torch.Tensor, shard: torch.Tensor, group: Group) -> Handle:
        """Fill the flat ``whole`` with every rank's flat ``shard``."""
        with _blaming_the_lost():
            return _Work(dist.all_gather_into_tensor(whole, shard, group.channel, async_op=True))

    def reduce_scatter(self, shard: torch.Tensor, whole: torch.Tensor, group: Group) -> Handle:
        """Sum the flat ``whole`` over ``group`` and keep this rank's part in ``shard``."""
        with _blaming_the_lost():
            return _Work(dist.reduce_scatter_tensor(shard, whole, group=group.channel, async_op=True))

    def broadcast(self, tensor: torch.Tensor, group: Group) -> Handle:
        """Copy ``tensor`` of the group's first rank to all others."""
        with _blaming_the_lost():
            return _Work(dist.broadcast(tensor, group.ranks[0], group.channel, async_op=True))

    def barrier(self) -> None:
        """Return when every rank of the run has come here."""
        with _blaming_the_lost():
            dist.barrier()

    def _lane(self, source: int, target: int, tag: int) -> Any:
        """Where messages from ``source`` to ``target`` go."""
        return self._lanes[(source, target), tag % LANES] if self._cuda else dist.group.WORLD

    def send(self, tensor: torch.Tensor, peer: int, tag: int) -> Handle:
        """Send ``tensor`` to rank ``peer``."""
        with _blaming_the_lost():
            return _Work(dist.isend(tensor, peer, group=self._lane(self.rank, peer, tag), tag=tag))

    def receive(self, buffer: torch.Tensor, peer: int, tag: int) -> Handle:
        """Receive what ``peer`` sends with ``tag`` into ``buffer``."""
        with _blaming_the_lost():
            return _Work(dist.irecv(buffer, peer, group=self._lane(peer, self.rank, tag), tag=tag))

    def first(self, receives: Sequence[Handle]) -> int:
        """Wait until one of the posted ``receives`` is finished, and say which."""
        works = [receive for receive in receives if isinstance(receive, _Work)]
        if len(works) == 1:
            works[0].wait()
            return 0
        return self._poll(works) if self._cuda else self._race(works)

    def arrived(self, receives: Sequence[Handle]) -> int | None:
        """Which of the posted ``receives`` is finished, if any is; returns at once."""
        works = [receive for receive in receives if isinstance(receive, _Work)]
        index = next((i for i, work in enumerate(works) if self._is_finished(work)), None)
        if index is not None:
            works[index].wait()
        return index

    def _is_finished(self, work: _Work) -> bool:
        if self._cuda:
            return bool(work.work.is_completed())
        return work.watch(self._watchers).finished

    def _race(self, works: list[_Work]) -> int:
        index = self._watchers.first([work.watch(self._watchers) for work in works])
        works[index].wait()
        return index

    def _poll(self, works: list[_Work]) -> int:
        # An NCCL wait only orders streams; is_completed asks the device.
        while (index := self.arrived(works)) is None:
            time.sleep(_POLL_SECONDS)
        return index

    def close(self) -> None:
        """Leave the run, when every rank is ready to.

        A rank that closes its sockets while another is still inside a collective breaks it, although
        its own part is done. So the ranks agree in the store first, where no socket of theirs is.
        """
        with _blaming_the_lost():
            self._leave_together()
        self._watchers.close()
        # A group that outlives the interpreter may abort the process in its destructor.
        self._groups.clear()
        self._lanes.clear()
        dist.destroy_process_group()

    def _leave_together(self) -> None:
        if self._store.add("ready", 1) == self._ranks:
            self._store.set("leave", "")
        self._store.wait(["leave"], timedelta(seconds=_LEAVE_SECONDS))
        if self._store.add("gone", 1) == self._ranks or self.rank:
            return
        # Rank 0 holds the store, so it is the last to go.
        deadline = time.monotonic() + _LEAVE_SECONDS
        while self._store.add("gone", 0) < self._ranks and time.monotonic() < deadline:
            time.sleep(0.01)
