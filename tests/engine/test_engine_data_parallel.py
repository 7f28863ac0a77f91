"""Gradients are summed once over whom they belong to, in one order, while backward still runs."""

import pytest
import torch
from engine_worlds import GPT, LLAMA, in_threads

from hpcdl.engine.data_parallel import Gradients
from hpcdl.engine.groups import make_groups
from hpcdl.engine.models.build import build_stage
from hpcdl.engine.tensor.parameters import Numerics
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.memory import MemoryTransport
from hpcdl.spec.decomposition import Decomposition

TINY_BUCKETS_MIB = 0.002


class Logged(MemoryTransport):
    """Remembers what was reduced, in order, and lets the test add marks."""

    def __init__(self, world, rank):
        super().__init__(world, rank)
        self.log = []

    def all_reduce(self, tensor, group, *reduction):
        self.log.append((group.ranks, tensor.numel()))
        return super().all_reduce(tensor, group, *reduction)


def prepared(transport, decomposition, model=GPT, dtype=torch.float32):
    topology = Topology(decomposition, transport.rank)
    groups = make_groups(transport, topology, tied=model.tied)
    stage = build_stage(model, topology, groups, Numerics(dtype, torch.device("cpu"), 0))
    return stage, Gradients(stage.held, topology, groups, TINY_BUCKETS_MIB)


def tokens(seed):
    return torch.randint(0, 256, (2, GPT.sequence), generator=torch.Generator().manual_seed(seed))


def mark(log, output):
    output.register_hook(lambda _: log.append("embedding"))


def test_reductions_start_before_backward_ends_and_in_one_order():
    """Nothing is reduced before the last backward; then all but the last buckets leave early."""

    def work(transport):
        stage, gradients = prepared(transport, Decomposition(data=2))
        gradients.begin(microbatches=2)
        stage.chunks[0](tokens(1), tokens(2)).backward()
        before = len(transport.log)
        stage.chunks[0].embedding.register_forward_hook(
            lambda _module, _inputs, output: mark(transport.log, output)
        )
        stage.chunks[0](tokens(3), tokens(4)).backward()
        gradients.finish()
        return before, transport.log

    answers = in_threads(2, work, Logged)
    assert answers[0] == answers[1]
    before, log = answers[0]
    assert before == 0
    assert log.index("embedding") > len(log) // 2 > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_accumulate_in_fp32_over_microbatches(dtype):
    """Also from bf16 computation, where a sum in bf16 would lose what a late microbatch adds."""

    def work(transport):
        stage, gradients = prepared(transport, Decomposition(), dtype=dtype)
        single = []
        for seed in range(4):
            gradients.begin(microbatches=1)
            stage.chunks[0](tokens(seed), tokens(seed + 10)).backward()
            single.append([slot.gradient.clone() for slot in gradients.slots])
        gradients.begin(microbatches=4)
        for seed in range(4):
            stage.chunks[0](tokens(seed), tokens(seed + 10)).backward()
        return gradients.slots, [sum(parts) for parts in zip(*single, strict=True)]

    ((slots, sums),) = in_threads(1, work)
    for slot, expected in zip(slots, sums, strict=True):
        assert slot.gradient.dtype == torch.float32
        assert (slot.gradient - expected).abs().max() < 1e-6 * expected.abs().max(), slot.name


def test_a_sum_over_data_is_made_once_a_batch():
    """Two batches in a row: the second starts from zero and is reduced again."""

    def work(transport):
        stage, gradients = prepared(transport, Decomposition(data=2))
        seen = []
        for _ in range(2):
            gradients.begin(microbatches=1)
            stage.chunks[0](tokens(transport.rank), tokens(5)).backward()
            gradients.finish()
            seen.append([slot.gradient.clone() for slot in gradients.slots])
        return seen

    (first, second), (other, _) = in_threads(2, work)
    for one, again, elsewhere in zip(first, second, other, strict=True):
        assert torch.equal(one, again)
        assert torch.equal(one, elsewhere)


@pytest.mark.parametrize(
    "decomposition",
    [
        Decomposition(),
        Decomposition(data=2, z=2),
        Decomposition(x=2, y=2, data=2),
        Decomposition(pipeline=3, z=2),
        Decomposition(pipeline=2, x=2, y=2, z=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
def test_each_parameter_counts_once_in_the_norm(model, decomposition):
    """Elements weighted 1/replicas add up to the model, a tied weight on two stages counted once."""

    def work(transport):
        _, gradients = prepared(transport, decomposition, model)
        return sum(slot.parameter.numel() / slot.replicas for slot in gradients.slots)

    assert sum(in_threads(decomposition.ranks, work)) == pytest.approx(model.parameters, rel=1e-12)
