"""Each layer against the plain torch function it stands for, on grids of threads."""

import numpy as np
import pytest
import torch
from engine_worlds import in_threads, whole
from torch.nn import functional

from hpcdl.engine.groups import make_groups
from hpcdl.engine.tensor.attention import rotate, rotation
from hpcdl.engine.tensor.embedding import Embedding
from hpcdl.engine.tensor.initial import normal_row, normal_shard
from hpcdl.engine.tensor.linear import Linear
from hpcdl.engine.tensor.loss import cross_entropy
from hpcdl.engine.tensor.norm import Norm
from hpcdl.engine.tensor.parameters import Factory, Numerics
from hpcdl.engine.tensor.sharding import Sharding
from hpcdl.engine.topology import Topology
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Matrix, Model

SERIAL = Decomposition()
GRIDS = [
    Decomposition(**degrees)
    for degrees in (
        {}, {"x": 2}, {"y": 2}, {"z": 2}, {"x": 2, "y": 2}, {"x": 2, "y": 2, "z": 2}, {"y": 2, "z": 3},
    )
]  # fmt: skip
ROWS, INPUTS, OUTPUTS = 12, 8, 24


def factory(transport, grid, dtype=torch.float32):
    topology = Topology(grid, transport.rank)
    groups = make_groups(transport, topology, tied=False)
    return Factory(topology, groups, Numerics(dtype, torch.device("cpu"), seed=3))


def part(full, topology, *axes):
    """The block of ``full`` whose dimensions are cut over ``axes``."""
    return full[Sharding(tuple(full.shape), axes, flat=False).block(topology)].clone()


def full_weight(name, shape):
    serial = Topology(SERIAL, 0)
    std = 0.5
    return normal_shard(3, name, std, Sharding(shape, (None, None), flat=True), serial).view(shape)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_linear_is_a_linear_layer(grid, transposed):
    """Output and all three gradients equal torch's, whatever x·y·z."""
    torch.manual_seed(0)
    inputs, grads = torch.randn(ROWS, INPUTS), torch.randn(ROWS, OUTPUTS)
    out_axis, in_axis = ("y", "x") if transposed else ("x", "y")

    def work(transport):
        make = factory(transport, grid)
        layer = Linear(make, Matrix("m", OUTPUTS, INPUTS), 0.5, transposed=transposed, bias=True)
        here = make.topology
        mine = part(inputs, here, "z", in_axis).requires_grad_()
        output = layer(mine)
        output.backward(part(grads, here, "z", out_axis))
        make.later.settle()
        make.groups.z.all_reduce(layer.bias.grad).wait()
        for name, value, axes in (("out", output, ("z", out_axis)), ("in", mine.grad, ("z", in_axis))):
            torch.testing.assert_close(value, part(expected[name], here, *axes), rtol=1e-5, atol=1e-5)
        return [(held, held.parameter.grad) for held in make.held]

    weight = full_weight("m.weight", (OUTPUTS, INPUTS)).requires_grad_()
    bias = torch.zeros(OUTPUTS, requires_grad=True)
    serial_in = inputs.clone().requires_grad_()
    serial_out = functional.linear(serial_in, weight, bias)
    serial_out.backward(grads)
    expected = {"out": serial_out.detach(), "in": serial_in.grad}
    found = whole(grid, in_threads(grid.ranks, work))
    torch.testing.assert_close(found["m.weight"], weight.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["m.bias"], bias.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_norm_uses_the_moments_of_the_full_width(width, centred):
    """A shard is not normalised by its own mean and variance; a large common mean costs no digits."""
    torch.manual_seed(0)
    inputs = torch.randn(5, 16) + 100 * centred
    grads = torch.randn(5, 16)
    grid = Decomposition(y=width)

    def work(transport):
        make = factory(transport, grid)
        norm = Norm(make, "n", 16, centred=centred)
        mine = part(inputs, make.topology, None, "y").requires_grad_()
        output = norm(mine)
        output.backward(part(grads, make.topology, None, "y"))
        for value, full in ((output, serial_out.detach()), (mine.grad, serial_in.grad)):
            torch.testing.assert_close(value, part(full, make.topology, None, "y"), rtol=2e-4, atol=2e-5)
        return norm.weight.grad

    serial_in = inputs.clone().requires_grad_()
    weight = torch.ones(16, requires_grad=True)
    bias = torch.zeros(16)
    normal = (
        functional.layer_norm(serial_in, (16,), weight, bias)
        if centred
        else functional.rms_norm(serial_in, (16,), weight, 1e-5)
    )
    serial_out = normal
    serial_out.backward(grads)
    found = torch.cat(in_threads(grid.ranks, work))
    torch.testing.assert_close(found, weight.grad, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_embedding_is_a_lookup(grid):
    model = Model(family="llama", layers=1, hidden=12, heads=2, vocab=8, sequence=4)
    tokens = torch.tensor(
        [[0, 7, 3, 3], [4, 4, 1, 0], [5, 6, 2, 7], [1, 0, 0, 2], [6, 3, 7, 7], [2, 5, 1, 4]]
    )
    grads = torch.randn(6, 4, 12, generator=torch.Generator().manual_seed(1))

    def work(transport):
        make = factory(transport, grid)
        here = make.topology
        embedding = Embedding(make, model)
        output = embedding(part(tokens, here, "z", None))
        output.backward(part(grads, here, "z", None, "y"))
        make.later.settle()
        return (
            output,
            [(held, held.parameter.grad) for held in make.held],
            [(h, h.parameter) for h in make.held],
        )

    answers = in_threads(grid.ranks, work)
    weight = whole(grid, [answer[2] for answer in answers])["embedding.tokens"].requires_grad_()
    serial = functional.embedding(tokens, weight)
    serial.backward(grads)
    for rank, (output, _, _) in enumerate(answers):
        assert torch.equal(output, part(serial.detach(), Topology(grid, rank), "z", None, "y"))
    found = whole(grid, [answer[1] for answer in answers])["embedding.tokens"]
    torch.testing.assert_close(found, weight.grad)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_cross_entropy_is_torchs(ranks, shift):
    """The same loss and gradient with the vocabulary in pieces, and no overflow of large logits."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 8, generator=generator) * 4 + shift
    targets = torch.tensor([[0, 7, 2], [3, 4, 5]])
    grid = Decomposition(x=ranks)

    def work(transport):
        make = factory(transport, grid)
        mine = part(logits, make.topology, None, None, "x").requires_grad_()
        loss = cross_entropy(mine, targets, make.groups.x)
        (0.5 * loss).backward()
        return loss.item(), mine.grad

    serial = logits.clone().requires_grad_()
    expected = functional.cross_entropy(serial.flatten(0, 1), targets.flatten(), reduction="sum")
    (0.5 * expected).backward()
    answers = in_threads(ranks, work)
    assert [loss for loss, _ in answers] == pytest.approx([expected.item()] * ranks, rel=1e-5)
    torch.testing.assert_close(
        torch.cat([grad for _, grad in answers], dim=2), serial.grad, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_ignored_targets_have_no_loss_and_no_gradient(ranks):
    logits = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2))
    targets = torch.tensor([[0, -1, 7], [-1, -1, 4]])

    def work(transport):
        make = factory(transport, Decomposition(x=ranks))
        mine = part(logits, make.topology, None, None, "x").requires_grad_()
        loss = cross_entropy(mine, targets, make.groups.x)
        loss.backward()
        return loss.item(), mine.grad

    serial = logits.clone().requires_grad_()
    expected = functional.cross_entropy(
        serial.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-1
    )
    expected.backward()
    answers = in_threads(ranks, work)
    assert [loss for loss, _ in answers] == pytest.approx([expected.item()] * ranks, rel=1e-5)
    torch.testing.assert_close(torch.cat([grad for _, grad in answers], dim=2), serial.grad)


@pytest.mark.parametrize("grid", [*GRIDS, Decomposition(x=4, y=2, z=2)], ids=str)
def test_initial_values_do_not_depend_on_the_grid(grid):
    """Any rank's shard is a piece of the one matrix that (seed, name) stand for."""
    shape = (24, 20)
    expected = full_weight("some.name", shape)
    for axes in (("x", "y"), ("y", "x")):
        sharding = Sharding(shape, axes, flat=True)
        for rank in range(grid.ranks):
            here = Topology(grid, rank)
            block = expected[sharding.block(here)].reshape(-1)
            assert torch.equal(normal_shard(3, "some.name", 0.5, sharding, here), block[sharding.span(here)])


def test_initial_values_are_standard_normal():
    """Moments and quartiles of 200,000 values within five standard errors; names and seeds differ."""
    key = np.array([1, 2], dtype=np.uint64)
    values = np.concatenate([normal_row(key, row, slice(0, 2000)) for row in range(100)])
    assert abs(values.mean()) < 5 / 200_000**0.5
    assert abs(values.var() - 1) < 5 * (2 / 200_000) ** 0.5
    assert np.mean(np.abs(values) < 0.67449) == pytest.approx(0.5, abs=5 * 0.5 / 200_000**0.5)
    serial, sharding = Topology(SERIAL, 0), Sharding((4, 4), (None, None), flat=True)
    drawn = {
        tuple(normal_shard(seed, name, 1.0, sharding, serial).tolist()) for seed in (0, 1) for name in "ab"
    }
    assert len(drawn) == 4


def test_replicas_times_distinct_elements_is_what_the_stage_holds():
    """Counting each element 1/replicas counts it once."""
    grid = Decomposition(x=2, y=3, z=2, data=2, pipeline=2)
    stage = [Topology(grid, rank) for rank in range(grid.ranks // 2)]
    for sharding in (
        Sharding((12, 12), ("x", "y"), flat=True),
        Sharding((12,), ("y",), flat=False),
        Sharding((5, 12), (None, "x"), flat=False),
    ):
        held = sum(sharding.span(here).stop - sharding.span(here).start for here in stage)
        assert held == torch.Size(sharding.shape).numel() * sharding.replicas(stage[0])


def test_rotation_makes_scores_depend_on_distance_only():
    """q·k after turning depends on the difference of positions (RoFormer, equation 14)."""
    angles = rotation(sequence=12, head_size=8, theta=100.0)
    query, key = torch.randn(8), torch.randn(8)
    turned_q, turned_k = (rotate(v.expand(12, 8), angles) for v in (query, key))
    scores = turned_q @ turned_k.T
    for distance in range(5):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
