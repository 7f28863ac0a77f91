"""Communication beside computation: what is begun and finished when, and that no number depends on it."""

from collections import Counter

import pytest
import torch
from engine_worlds import GPT, LLAMA, in_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hpcdl.engine.groups import make_groups
from hpcdl.engine.learner import Learner
from hpcdl.engine.tensor.linear import Linear
from hpcdl.engine.tensor.parameters import Factory, Numerics
from hpcdl.engine.tensor.prefetch import Prefetch
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.memory import MemoryTransport
from hpcdl.engine.update import Step
from hpcdl.spec.data import Data
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.job import Communication, Overlap
from hpcdl.spec.model import Matrix
from hpcdl.spec.training import Training

CPU = torch.device("cpu")
WIDTH = 8
NOTHING = Overlap(input_gradient=False, weight_scatter=False, weight_gather=False)


class Noted:
    """A handle that notes when it is first waited for."""

    def __init__(self, handle, events, what):
        self._handle, self._events, self._what = handle, events, what

    def wait(self):
        self._handle.wait()
        if self._what:
            self._events.append(f"end {self._what}")
        self._what = None


class Noting(MemoryTransport):
    """A door that notes what is begun and what is waited for, numbered by operation."""

    def __init__(self, world, rank):
        super().__init__(world, rank)
        self.events = []
        self._counts = Counter()

    def _noted(self, operation, begin):
        self._counts[operation] += 1
        what = f"{operation} {self._counts[operation]}"
        self.events.append(f"begin {what}")
        return Noted(begin(), self.events, what)

    def all_reduce(self, *args):
        return self._noted("reduce", lambda: MemoryTransport.all_reduce(self, *args))

    def all_gather(self, *args):
        return self._noted("gather", lambda: MemoryTransport.all_gather(self, *args))

    def reduce_scatter(self, *args):
        return self._noted("scatter", lambda: MemoryTransport.reduce_scatter(self, *args))


class Products(TorchDispatchMode):
    """Notes every matrix product."""

    def __init__(self, events):
        super().__init__()
        self._events = events

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.mm.default:
            self._events.append("product")
        return function(*args, **(kwargs or {}))


def chained(transport, grid, overlap, layers):
    """Normal and transposed layers in turn, and what made them."""
    topology = Topology(grid, transport.rank)
    groups = make_groups(transport, topology, tied=False)
    factory = Factory(topology, groups, Numerics(torch.float32, CPU, 3, overlap))
    chain = [
        Linear(factory, Matrix(f"m{n}", WIDTH, WIDTH), 0.5, transposed=bool(n % 2), bias=False)
        for n in range(layers)
    ]
    return factory, chain


def events_of(grid, overlap, *, layers=1, passes=1):
    """What rank 0 does in the backward of the last pass through a chain of layers, and its settling."""

    def work(transport):
        factory, chain = chained(transport, grid, overlap, layers)
        for _ in range(passes):
            stream = torch.ones(4, chain[0].layout.block[1], requires_grad=True)
            factory.later.begin("forward")
            for layer in chain:
                stream = layer(stream)
            factory.later.settle()
            transport.events.clear()
            transport._counts.clear()
            factory.later.begin("backward")
            with Products(transport.events):
                stream.sum().backward()
            transport.events.append("settle")
            factory.later.settle()
        return transport.events

    return in_threads(grid.ranks, work, Noting)[0]


def test_the_input_gradient_is_reduced_beside_the_weight_product():
    """Input product, reduction begun, weight product, reduction finished."""
    events = events_of(Decomposition(x=2), Overlap())
    assert events == ["product", "begin reduce 1", "product", "end reduce 1", "settle"]


def test_without_overlap_the_input_gradient_is_reduced_before_the_weight_product():
    events = events_of(Decomposition(x=2), NOTHING)
    assert events == ["product", "begin reduce 1", "end reduce 1", "product", "settle"]


def test_scatters_are_finished_when_the_backward_settles():
    events = events_of(Decomposition(z=2), Overlap(weight_gather=False), layers=3)
    assert events[-4:] == ["settle", "end scatter 1", "end scatter 2", "end scatter 3"]
    assert [event for event in events if event.startswith("begin scatter")] == [
        f"begin scatter {n}" for n in (1, 2, 3)
    ]


def test_without_overlap_each_scatter_is_finished_where_it_was_begun():
    events = events_of(Decomposition(z=2), NOTHING, layers=2)
    for n in (1, 2):
        assert events[events.index(f"begin scatter {n}") + 1] == f"end scatter {n}"
    assert events[-1] == "settle"


def test_deferred_weight_products_are_scattered_when_they_are_done():
    """The backward leaves them; the settling after them finishes their scatters, in their order."""

    def work(transport):
        factory, layer = chained(transport, Decomposition(z=2), Overlap(), 1)
        stream = torch.ones(4, WIDTH, requires_grad=True)
        gradients = []
        for deferring in (False, True):
            factory.later.deferring = deferring
            layer[0](stream).sum().backward()
            factory.later.settle()
            begun = sum("begin scatter" in event for event in transport.events)
            left = factory.later.take()
            for product in left:
                product()
            factory.later.settle()
            gradients.append((begun, len(left), layer[0].weight.grad))
            layer[0].weight.grad = None
        return gradients

    (at_once, deferred), _ = in_threads(2, work, Noting)
    assert at_once[:2] == (1, 0)
    assert deferred[:2] == (1, 1)
    assert torch.equal(at_once[2], deferred[2])


def test_few_scatters_are_pending_at_once():
    """Each keeps a block of gradient, so the oldest is finished when a layer's worth is under way."""
    pending = most = 0
    for event in events_of(Decomposition(z=2), Overlap(), layers=8):
        pending += event.startswith("begin scatter") - event.startswith("end scatter")
        most = max(most, pending)
    assert pending == 0
    assert most == 5


def test_the_next_weight_is_gathered_before_the_product_of_this_one():
    """Once the order is known: the next gather is begun, this one finished, then comes the product."""
    events = events_of(Decomposition(z=2), Overlap(weight_scatter=False), layers=3, passes=2)
    assert events[:5] == ["begin gather 1", "begin gather 2", "end gather 1", "product", "product"]
    second = events.index("end gather 2")
    assert events[second - 1] == "begin gather 3"
    assert events[second + 1] == "product"


def test_in_the_first_pass_nothing_is_known_yet():
    events = events_of(Decomposition(z=2), Overlap(), layers=2)
    assert events[:3] == ["begin gather 1", "end gather 1", "product"]
    assert events.index("begin gather 2") > events.index("begin scatter 1")


def taking(orders):
    """What was gathered on each rank for passes of ``orders``, and that every block was right."""

    def work(transport):
        topology = Topology(Decomposition(z=2), transport.rank)
        prefetch = Prefetch(make_groups(transport, topology, tied=False).weights)
        shards = [torch.full((2,), float(10 * n + transport.rank)) for n in range(4)]
        for order in orders:
            prefetch.begin("pass")
            for n in order:
                expected = torch.tensor([10.0 * n, 10.0 * n, 10.0 * n + 1, 10.0 * n + 1])
                assert torch.equal(prefetch.take(shards[n]), expected)
            prefetch.end()
        return [event for event in transport.events if event.startswith("begin")]

    first, second = in_threads(2, work, Noting)
    assert first == second
    return len(first)


@pytest.mark.parametrize(
    ("orders", "gathers"),
    [
        ([[0, 1, 2], [0, 1, 2]], 6),  # learned
        ([[0, 1, 2], [0, 2, 1]], 7),  # 1 was gathered for nothing
        ([[0, 1, 2], [0]], 3 + 2),  # the pass ended early
        ([[0, 1], [0, 1, 2, 3]], 6),  # the pass went on
        ([[0, 0, 1], [0, 0, 1]], 6),  # recomputation uses one weight twice in a row
        ([[0, 1, 2], [3, 1, 2], [3, 1, 2]], 9),  # learned anew
        ([[], [1]], 1),
    ],
)
def test_another_order_than_expected_is_still_right(orders, gathers):
    assert taking(orders) == gathers


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=5))
def test_any_sequence_of_passes_gathers_the_same_on_all_ranks(orders):
    """Nobody waits for a gather that another did not begin, and at most one more an order is for nothing."""
    gathers = taking(orders)
    wanted = sum(map(len, orders))
    assert wanted <= gathers <= wanted + len(orders)


def test_a_weight_gathered_ahead_is_never_older_than_an_update():
    """What a short pass left is dropped, although the next pass wants that very weight first."""

    def work(transport):
        topology = Topology(Decomposition(z=2), transport.rank)
        prefetch = Prefetch(make_groups(transport, topology, tied=False).weights)
        first, second = torch.zeros(1), torch.zeros(1)
        for order in ([first, second], [first]):
            prefetch.begin("forward")
            for shard in order:
                prefetch.take(shard)
        prefetch.end()
        second.add_(1.0)
        return prefetch.take(second)

    assert all(torch.equal(whole, torch.ones(2)) for whole in in_threads(2, work))


def test_alone_on_z_nothing_is_gathered():
    assert not any(
        "gather" in e or "scatter" in e for e in events_of(Decomposition(x=2), Overlap(), passes=2)
    )


def trained(model, decomposition, overlap):
    """Losses and all weights after two steps."""
    experiment = Experiment(
        model=model,
        data=Data(source="stdlib"),
        training=Training(global_batch=8, steps=2, precision="fp32", bucket_mib=0.002),
        communication=Communication(overlap=overlap),
    )
    tokens = torch.randint(
        0, model.vocab, (8, model.sequence + 1), generator=torch.Generator().manual_seed(5)
    )

    def work(transport):
        learner = Learner(experiment, decomposition, transport, CPU)
        rows = tokens.chunk(decomposition.batch_shards)[learner.topology.batch_shard]
        losses = [learner.step(Step(step, 0.01), rows[:, :-1], rows[:, 1:]) for step in (1, 2)]
        return losses, [held.parameter.detach().clone() for held in learner.stage.held]

    return in_threads(decomposition.ranks, work)


@pytest.mark.parametrize("switch", ["input_gradient", "weight_scatter", "weight_gather"])
@pytest.mark.parametrize(
    ("model", "degrees"),
    [
        (GPT, {"z": 2, "x": 2, "microbatch": 2}),
        (LLAMA, {"z": 2, "y": 2, "recompute": "full"}),
        (GPT, {"pipeline": 3, "z": 2}),
    ],
    ids=["gpt", "llama recomputed", "pipeline"],
)
def test_overlap_changes_not_one_bit(model, degrees, switch):
    """The same sums in the same order: losses, gradient norms and weights are equal."""
    decomposition = Decomposition(**degrees)
    with_it = trained(model, decomposition, NOTHING.model_copy(update={switch: True}))
    without = trained(model, decomposition, NOTHING)
    for (losses, weights), (other_losses, other_weights) in zip(with_it, without, strict=True):
        assert losses == other_losses
        assert all(torch.equal(one, other) for one, other in zip(weights, other_weights, strict=True))
