"""Which runtime carries what, over ranks as threads."""

import pytest
import torch
from engine_worlds import in_threads
from exercise_transport import RANKS, exercise

from hpcdl.engine.transport.memory import MemoryTransport, World
from hpcdl.engine.transport.probe import prove
from hpcdl.engine.transport.routed import Routed, Routes, split
from hpcdl.errors import EngineError, PeerLostError


class Counting(MemoryTransport):
    """Knows how often each of its operations was called."""

    def __init__(self, world, rank):
        super().__init__(world, rank)
        self.calls = []

    def all_reduce(self, tensor, group, *reduction):
        self.calls.append(("all_reduce", tensor.numel()))
        return super().all_reduce(tensor, group, *reduction)

    def send(self, tensor, peer, tag):
        self.calls.append(("send", tensor.numel()))
        return super().send(tensor, peer, tag)


def by_size(call):
    return "small" if call.bytes <= 4096 * call.ranks else "large"


def test_two_runtimes_keep_the_promises_together():
    other = World(RANKS)

    def work(transport):
        runtimes = {"small": transport, "large": other.transport(transport.rank)}
        exercise(Routed(runtimes, Routes("large", ("small", "large"), by_size)))

    in_threads(RANKS, work)


def test_each_collective_goes_where_the_choice_says():
    other = World(2)

    def work(small):
        large = Counting(other, small.rank)
        door = Routed({"small": small, "large": large}, Routes("small", ("small", "large"), by_size))
        pair = door.group((0, 1))
        for size in (2048, 2049):
            tensor = torch.ones(size)
            door.all_reduce(tensor, pair).wait()
            assert tensor.sum().item() == 2 * size
        return small.calls, large.calls

    expected = ([("all_reduce", 2048)], [("all_reduce", 2049)])
    assert in_threads(2, work, Counting) == [expected, expected]


def test_a_split_sends_messages_one_way_and_collectives_the_other():
    other = World(2)

    def work(messages):
        collectives = Counting(other, messages.rank)
        door = Routed({"c": collectives, "m": messages}, split(messages="m", collectives="c"))
        peer, buffer = 1 - door.rank, torch.zeros(3)
        door.send(torch.ones(3), peer, 0).wait()
        assert door.first([door.receive(buffer, peer, 0)]) == 0
        door.all_reduce(buffer, door.group((0, 1))).wait()
        assert buffer.tolist() == [2, 2, 2]
        return messages.calls, collectives.calls

    expected = ([("send", 3)], [("all_reduce", 3)])
    assert in_threads(2, work, Counting) == [expected, expected]


class Halving(MemoryTransport):
    """Loses half of every bf16 sum, as a library may that does not know the type."""

    name = "libwrong 1.2"

    def all_reduce(self, tensor, group, *reduction):
        handle = super().all_reduce(tensor, group, *reduction)
        handle.wait()
        if tensor.dtype is torch.bfloat16:
            tensor /= 2
        return handle


class Refusing(MemoryTransport):
    """Takes no fp64."""

    name = "libpicky 3"

    def all_reduce(self, tensor, group, *reduction):
        if tensor.dtype is torch.float64:
            raise RuntimeError("Invalid MPI_Op")
        return super().all_reduce(tensor, group, *reduction)


class Lonely(MemoryTransport):
    """The others are gone."""

    def all_reduce(self, *_):
        raise PeerLostError("another rank went away")


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_a_runtime_that_adds_is_believed(ranks):
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    in_threads(ranks, lambda transport: prove(transport, ranks, dtypes, torch.device("cpu")))


@pytest.mark.parametrize(
    ("door", "complaint"),
    [(Halving, "libwrong 1.2 sums torch.bfloat16 to"), (Refusing, "libpicky 3 refuses to sum torch.float64")],
)
def test_a_runtime_that_cannot_add_is_named(door, complaint):
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    with pytest.raises(EngineError, match=complaint) as caught:
        in_threads(2, lambda transport: prove(transport, 2, dtypes, torch.device("cpu")), door)
    assert "communication.transport" in caught.value.hint


def test_a_lost_rank_is_not_blamed_on_the_runtime():
    with pytest.raises(PeerLostError):
        in_threads(2, lambda transport: prove(transport, 2, [torch.float32], torch.device("cpu")), Lonely)
