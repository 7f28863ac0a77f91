"""The runner keeps the stage machine's promises over a transport that delivers as it likes."""

import pytest
import torch
from engine_worlds import GPT, Jittery, in_threads, whole
from torch import nn

from hpcdl.engine.groups import make_groups
from hpcdl.engine.models.build import build_stage
from hpcdl.engine.pipeline.runner import Batch, Pass, Seat
from hpcdl.engine.tensor.later import Later
from hpcdl.engine.tensor.parameters import Numerics
from hpcdl.engine.timeline import COMPUTE, Timeline
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.memory import MemoryTransport
from hpcdl.engine.transport.packet import Field
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.job import Overlap

ROWS = 7


class Watched(MemoryTransport):
    """Counts the receives that are posted and not finished."""

    def __init__(self, world, rank):
        super().__init__(world, rank)
        self.outstanding = {}
        self.most = 0

    def receive(self, buffer, peer, tag):
        handle = super().receive(buffer, peer, tag)
        posted = self.outstanding.setdefault(peer, set())
        posted.add(tag)
        self.most = max(self.most, len(posted))
        finish = handle.wait

        def wait():
            finish()
            posted.discard(tag)

        handle.wait = wait
        return handle


def one_pass(transport, decomposition):
    """Loss, gradients and what happened, in order, on one rank."""
    topology = Topology(decomposition, transport.rank)
    groups = make_groups(transport, topology, tied=False)
    model = GPT.model_copy(update={"layers": 6, "tied": False})
    stage = build_stage(model, topology, groups, Numerics(torch.float32, torch.device("cpu"), 0))
    tokens = torch.randint(0, 256, (ROWS, GPT.sequence + 1), generator=torch.Generator().manual_seed(0))
    inputs, targets = (part.split(decomposition.microbatch) for part in (tokens[:, :-1], tokens[:, 1:]))
    timeline = Timeline()
    batch = Batch(inputs, targets, loss_scale=0.1, step=1)
    loss = Pass(Seat(transport, topology, groups.team, timeline), stage, batch).run()
    gradients = [(held, held.parameter.grad) for held in stage.held]
    computed = [span for span in timeline.take().spans if span.category == COMPUTE]
    happened = [f"{one.name} {one.facts['chunk']}.{one.facts['microbatch']}" for one in computed]
    return loss.item(), gradients, happened


@pytest.fixture(scope="module")
def serial():
    ((loss, gradients, _),) = in_threads(1, lambda transport: one_pass(transport, Decomposition()))
    return loss, whole(Decomposition(), [gradients])


PIPELINES = [
    {"pipeline": 3}, {"pipeline": 3, "microbatch": 2}, {"pipeline": 3, "in_flight": 1},
    {"pipeline": 2, "interleave": 3}, {"pipeline": 3, "interleave": 2, "microbatch": 3},
    {"pipeline": 2, "interleave": 2, "in_flight": 1}, {"pipeline": 3, "in_flight": 7},
    {"pipeline": 3, "x": 2}, {"pipeline": 3, "x": 2, "y": 2}, {"pipeline": 2, "interleave": 2, "x": 2},
    {"pipeline": 2, "interleave": 3, "y": 2, "microbatch": 2},
]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("defer", [False, True], ids=["whole", "deferred"])
@pytest.mark.parametrize("degrees", PIPELINES, ids=str)
def test_any_order_of_delivery_gives_the_same_gradients(serial, degrees, defer, seed):
    """Ranks of one team see messages in different orders and still serve them in one."""
    decomposition = Decomposition(**degrees, defer_weights=defer)
    answers = in_threads(
        decomposition.ranks,
        lambda transport: one_pass(transport, decomposition),
        lambda world, rank: Jittery(world, rank, seed),
    )
    assert answers[decomposition.ranks - 1][0] == pytest.approx(serial[0], rel=1e-5)
    found = whole(decomposition, [answer[1] for answer in answers])
    for name, gradient in serial[1].items():
        assert (found[name] - gradient).abs().max() / gradient.abs().max() < 2e-6, name


def test_at_most_one_receive_is_posted_a_direction():
    decomposition = Decomposition(pipeline=3)

    def work(transport):
        one_pass(transport, decomposition)
        return transport

    for transport in in_threads(3, work, Watched):
        assert transport.most == 1
        assert not any(transport.outstanding.values()), "a receive was posted that nobody waited for"


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_every_stage_runs_each_microbatch_and_holds_few(stages):
    """No stage holds more microbatches than may be in flight."""
    decomposition = Decomposition(pipeline=stages, in_flight=stages)
    for stage, (loss, _, happened) in enumerate(
        in_threads(stages, lambda transport: one_pass(transport, decomposition))
    ):
        names = [f"{word} 0.{microbatch}" for word in ("forward", "backward") for microbatch in range(ROWS)]
        assert sorted(happened) == sorted(names)
        held = most = 0
        for name in happened:
            held += 1 if name.startswith("forward") else -1
            most = max(most, held)
        assert most <= stages
        assert (loss > 0) == (stage == stages - 1)


class Counted(MemoryTransport):
    """Counts broadcasts, which only agreements need here."""

    broadcasts = 0

    def broadcast(self, tensor, group):
        self.broadcasts += 1
        return super().broadcast(tensor, group)


@pytest.mark.parametrize(
    ("degrees", "choices"),
    [
        ({"pipeline": 1}, [0]),
        (
            {"pipeline": 2, "in_flight": 2},
            [ROWS - 2 + 1, 0],
        ),  # the last stage receives activations and nothing else
        ({"pipeline": 2, "in_flight": 1}, [0, 0]),
        ({"pipeline": 3, "in_flight": 1}, [0, 0, 0]),
        ({"pipeline": 2, "interleave": 3, "in_flight": 1}, [0, 0]),
    ],
    ids=str,
)
def test_a_team_speaks_only_where_there_is_a_choice(degrees, choices):
    decomposition = Decomposition(x=2, **degrees)

    def work(transport):
        one_pass(transport, decomposition)
        return transport.broadcasts

    counts = in_threads(decomposition.ranks, work, Counted)
    assert counts[::2] == counts[1::2]
    assert counts[::2] == choices


class Pair(nn.Module):
    """A chunk whose output is two tensors, one of them whole numbers; the last one answers a loss."""

    def __init__(self, number, last):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 1.0 + number))
        self.last = last

    def forward(self, incoming, targets, _rows):
        values, counts = incoming if isinstance(incoming, tuple) else (incoming, incoming[:, 0].long())
        values = values * self.weight
        if self.last:
            return ((values - targets[:, None]) * counts[:, None]).pow(2).sum()
        return values, counts + 1


class Pairs:
    """Modules of somebody else's, as a stage."""

    device = torch.device("cpu")

    def __init__(self, topology, groups):
        d = topology.decomposition
        last = d.pipeline * d.interleave - 1
        self.signatures = ((Field((3,), torch.float32), Field((), torch.int64)),) * (last + 1)
        numbers = [chunk * d.pipeline + topology.stage for chunk in range(d.interleave)]
        self.chunks = nn.ModuleList(Pair(number, number == last) for number in numbers)
        self.later = Later(groups, Overlap())


@pytest.mark.parametrize("degrees", [{"pipeline": 4}, {"pipeline": 2, "interleave": 2}], ids=str)
def test_messages_carry_several_tensors(degrees):
    decomposition = Decomposition(microbatch=2, **degrees)
    inputs, targets = torch.arange(15.0).view(5, 3), torch.arange(5.0)

    def work(transport):
        topology = Topology(decomposition, transport.rank)
        groups = make_groups(transport, topology, tied=False)
        team, model = groups.team, Pairs(topology, groups)
        batch = Batch(inputs.split(2), targets.split(2), loss_scale=0.5, step=1)
        loss = Pass(Seat(transport, topology, team, Timeline()), model, batch).run()
        return loss, [(chunk.weight[0].item(), chunk.weight.grad) for chunk in model.chunks]

    modules = [Pair(number, number == 3) for number in range(4)]
    outputs = inputs
    for module in modules:
        outputs = module(outputs, targets, None)
    (0.5 * outputs).backward()
    answers = in_threads(decomposition.pipeline, work, lambda world, rank: Jittery(world, rank, 3))
    assert sum(loss for loss, _ in answers).item() == pytest.approx(0.5 * outputs.item())
    gradients = dict(pair for _, pairs in answers for pair in pairs)
    for number, module in enumerate(modules):
        assert torch.allclose(gradients[1.0 + number], module.weight.grad, rtol=1e-5)


def test_spans_name_chunk_and_microbatch_and_idle_time_is_told():
    decomposition = Decomposition(pipeline=2, interleave=3, microbatch=3, defer_weights=True)
    for _, _, happened in in_threads(2, lambda transport: one_pass(transport, decomposition)):
        words, chunks, microbatches = ("forward", "backward", "weight"), range(3), range(3)
        names = [f"{word} {c}.{m}" for word in words for c in chunks for m in microbatches]
        assert sorted(happened) == sorted(names)


class Held(MemoryTransport):
    """Knows how many sends nobody has let go of."""

    def __init__(self, world, rank):
        super().__init__(world, rank)
        self.open = self.most = 0

    def send(self, tensor, peer, tag):
        handle = super().send(tensor, peer, tag)
        self.open += 1
        self.most = max(self.most, self.open)
        finish = handle.wait

        def wait():
            finish()
            self.open -= 1

        handle.wait = wait
        return handle


@pytest.mark.parametrize("degrees", [{"pipeline": 3}, {"pipeline": 2, "interleave": 3}], ids=str)
def test_messages_that_arrived_are_let_go(degrees):
    """Two in flight of seven: an activation goes when its gradient comes, a gradient when the next activation does."""
    decomposition = Decomposition(in_flight=2, **degrees)

    def work(transport):
        one_pass(transport, decomposition)
        return transport

    for transport in in_threads(decomposition.ranks, work, Held):
        assert transport.open == 0
        assert transport.most <= 2 * 2 * decomposition.interleave + 2
