"""The runner keeps the stage machine's promises over a transport that delivers as it likes."""

import pytest
import torch
from engine_worlds import GPT, Jittery, in_threads, whole

from hpcdl.engine.groups import make_groups
from hpcdl.engine.models.build import build_stage
from hpcdl.engine.pipeline.runner import Batch, Pass, Seat
from hpcdl.engine.tensor.parameters import Numerics
from hpcdl.engine.timeline import COMPUTE, Timeline
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.memory import MemoryTransport
from hpcdl.spec.decomposition import Decomposition

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
    timeline.recording = True
    batch = Batch(inputs, targets, loss_scale=0.1, step=1)
    loss = Pass(Seat(transport, topology, groups.team, timeline), stage, batch).run()
    gradients = [(held, held.parameter.grad) for held in stage.held]
    return loss.item(), gradients, [span.name for span in timeline.spans if span.category == COMPUTE]


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
    """No stage holds more microbatches than the pipeline has stages."""
    decomposition = Decomposition(pipeline=stages)
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
