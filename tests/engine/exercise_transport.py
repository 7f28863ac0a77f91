"""One set of exercises for every transport; also a program: ``exercise_transport.py dist|mpi|staged|mixed``.

Started as a program, the ranks are real processes, and a broken exercise ends them with status 1.
"""

import os
import sys
from datetime import timedelta

import torch
from torch.distributed import FileStore

from hpcdl.engine.transport.base import Reduction, Transport
from hpcdl.engine.transport.dist import DistTransport
from hpcdl.engine.transport.host import Direct, Staged
from hpcdl.engine.transport.routed import Routed, split

RANKS = 4


def exercise(transport: Transport) -> None:
    """Everything a transport promises, on four ranks."""
    everyone = transport.group(tuple(range(RANKS)))
    row = transport.group((0, 1) if transport.rank < 2 else (2, 3))
    column = transport.group((0, 2) if transport.rank % 2 == 0 else (1, 3))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        collectives(transport, everyone, dtype)
    assert reduced(transport, row, float(transport.rank)) == (1.0 if transport.rank < 2 else 5.0)
    assert reduced(transport, column, float(transport.rank)) == (2.0 if transport.rank % 2 == 0 else 4.0)
    overlapping(transport, row, everyone)
    lanes(transport, everyone)
    messages(transport)
    races(transport)
    looks(transport)
    relayed(transport, column)
    transport.barrier()


def reduced(transport, group, value):
    tensor = torch.tensor([value])
    transport.all_reduce(tensor, group).wait()
    return tensor.item()


def collectives(transport, group, dtype):
    rank = transport.rank
    values = torch.arange(8, dtype=dtype)
    total = values + rank
    transport.all_reduce(total, group).wait()
    assert torch.equal(total, 4 * values + 6), (dtype, total)
    largest = values * (-1) ** rank
    transport.all_reduce(largest, group, Reduction.MAX).wait()
    assert torch.equal(largest, values)
    whole = torch.empty(8, dtype=dtype)
    transport.all_gather(whole, values[2 * rank : 2 * rank + 2].clone(), group).wait()
    assert torch.equal(whole, values)
    shard = torch.empty(2, dtype=dtype)
    transport.reduce_scatter(shard, values + rank, group).wait()
    assert torch.equal(shard, (4 * values + 6)[2 * rank : 2 * rank + 2]), (dtype, shard)
    told = torch.full((3,), rank + 1, dtype=dtype)
    transport.broadcast(told, group).wait()
    assert torch.equal(told, torch.ones(3, dtype=dtype))


def lanes(transport, everyone):
    """The same ranks in two lanes: not even the order in which operations begin must be the same in both."""
    other = transport.group(everyone.ranks, "other")
    work = [(torch.ones(2), everyone), (torch.ones(3, dtype=torch.float64), other)]
    begun = [transport.all_reduce(*one) for one in (work if transport.rank % 2 else reversed(work))]
    for handle in begun:
        handle.wait()
    assert all((tensor == RANKS).all() for tensor, _ in work)


def overlapping(transport, row, everyone):
    """Several operations under way at once, over two groups, waited for in reverse."""
    tensors = [torch.full((1000,), float(transport.rank + i)) for i in range(4)]
    groups = [row, everyone, row, everyone]
    handles = [transport.all_reduce(*pair) for pair in zip(tensors, groups, strict=True)]
    for handle in reversed(handles):
        handle.wait()
        handle.wait()
    low = sum(row.ranks)
    expected = [low, 6 + 4, low + 4, 6 + 12]
    assert [tensor[-1].item() for tensor in tensors] == expected


def messages(transport):
    """Around a ring, two tags each way, received in the other order than sent."""
    after, before = (transport.rank + 1) % RANKS, (transport.rank - 1) % RANKS
    sends = [
        transport.send(torch.full((2, 3), 10.0 * transport.rank + tag, dtype=torch.bfloat16), after, tag)
        for tag in (1, 2)
    ]
    for tag in (2, 1):
        buffer = torch.empty(2, 3, dtype=torch.bfloat16)
        transport.receive(buffer, before, tag).wait()
        assert torch.equal(buffer, torch.full((2, 3), 10.0 * before + tag, dtype=torch.bfloat16))
    for send in sends:
        send.wait()


def races(transport):
    """Of two posted receives the one whose message comes is answered, whichever it is."""
    for early, late in ((1, 2), (2, 1)):
        if transport.rank == 0:
            buffers = [torch.zeros(1), torch.zeros(1)]
            posted = [transport.receive(buffers[i], i + 1, tag=7) for i in (0, 1)]
            assert transport.first(posted) == early - 1
            assert buffers[early - 1].item() == early
            transport.send(torch.ones(1), late, tag=8).wait()  # only now may the other one speak
            posted[late - 1].wait()
            assert buffers[late - 1].item() == late
        elif transport.rank == late:
            transport.receive(torch.zeros(1), 0, tag=8).wait()
        if transport.rank in (1, 2):
            transport.send(torch.full((1,), float(transport.rank)), 0, tag=7).wait()
        transport.barrier()


def looks(transport):
    """A look says what has arrived and waits for nothing; lanes do not wait for each other."""
    if transport.rank > 1:
        transport.barrier()
        return
    other = 1 - transport.rank
    buffers = {lane: torch.zeros(3) for lane in (0, 1)}
    posted = {lane: transport.receive(buffers[lane], other, tag=2 * 9 + lane) for lane in (0, 1)}
    assert transport.arrived(list(posted.values())) is None
    transport.barrier()
    sends = [transport.send(torch.full((3,), 1.0 + lane), other, tag=2 * 9 + lane) for lane in (1, 0)]
    while posted:
        found = transport.arrived(list(posted.values()))
        if found is not None:
            lane = list(posted)[found]
            posted.pop(lane).wait()
            assert buffers[lane].tolist() == [1.0 + lane] * 3
    for send in sends:
        send.wait()


def relayed(transport, column):
    """A large message moves while its sender waits in a collective that cannot begin before it came."""
    if transport.rank == 0:
        send = transport.send(torch.ones(2_000_000), 1, tag=9)
        assert reduced(transport, column, 1.0) == 2.0
        send.wait()
    elif transport.rank == 1:
        large = torch.zeros(2_000_000)
        transport.receive(large, 0, tag=9).wait()
        assert large.min().item() == 1.0
        transport.send(torch.ones(1), 2, tag=10).wait()
    elif transport.rank == 2:
        transport.receive(torch.zeros(1), 1, tag=10).wait()
        assert reduced(transport, column, 1.0) == 2.0


def open_transport(kind: str) -> Transport:
    if kind == "dist":
        return open_dist(int(os.environ["RANK"]))
    # Importing it initialises MPI, which pytest and the Gloo ranks must not do.
    from hpcdl.engine.transport.mpi import MpiTransport  # noqa: PLC0415

    if kind == "mixed":
        mpi = MpiTransport(Direct(), apart=True)
        return Routed({"dist": open_dist(mpi.rank), "mpi": mpi}, split(messages="mpi", collectives="dist"))
    return MpiTransport(Staged() if kind == "staged" else Direct())


def open_dist(rank: int) -> Transport:
    store = FileStore(os.environ["STORE"], RANKS)
    store.set_timeout(timedelta(seconds=60))
    return DistTransport(store, (rank, RANKS), torch.device("cpu"), timeout_seconds=60)


if __name__ == "__main__":
    torch.set_num_threads(1)
    door = open_transport(sys.argv[1])
    exercise(door)
    door.close()
