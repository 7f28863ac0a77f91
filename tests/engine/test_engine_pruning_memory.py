"""What a pruned learner has in memory, counted over all live tensors at the peak of the update."""

import gc

import pytest
import torch
from engine_pruning import CPU
from engine_worlds import GPT, in_threads
from quick import first_of

from hpcdl.engine.learner import Learner
from hpcdl.engine.optim import adamw
from hpcdl.engine.pruning import Pruner
from hpcdl.engine.transport.memory import MemoryTransport, World
from hpcdl.engine.update import Step
from hpcdl.spec.data import Data
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.model import Model
from hpcdl.spec.training import Pruning, Training

LARGE = Model(**GPT.model_dump() | {"layers": 2, "hidden": 256, "heads": 4, "ffn": 1024, "vocab": 512})


def storages():
    """Bytes by storage of all tensors that live."""
    found = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in found}


class Peak:
    """The most bytes of tensors that were not there before, at any update of a bucket."""

    def __init__(self, monkeypatch):
        gc.collect()
        self.before, self.bytes, self.original = storages(), 0, adamw.adamw
        monkeypatch.setattr(adamw, "adamw", self.update)

    def update(self, *arguments, **named):
        live = storages()
        self.bytes = max(self.bytes, sum(live[place] for place in live.keys() - self.before.keys()))
        return self.original(*arguments, **named)


def experiment(sparsity, bucket_mib):
    pruning = Pruning(sparsity=sparsity, exclude=())
    training = Training(precision="bf16", bucket_mib=bucket_mib, pruning=pruning, global_batch=2)
    return Experiment(model=LARGE, data=Data(source="stdlib"), training=training)


def peak(monkeypatch, sparsity, bucket_mib):
    """Bytes at the peak, elements of matrices, elements of vectors."""
    measured, settings = Peak(monkeypatch), experiment(sparsity, bucket_mib)
    learner = Learner(settings, Decomposition(), MemoryTransport(World(1), 0), CPU)
    Pruner(settings.training.pruning, learner, lambda *_, **__: None).begin(0)
    tokens = torch.ones(2, LARGE.sequence + 1, dtype=torch.int64)
    measured.bytes = 0
    learner.step(Step(1, 0.1), tokens[:, :-1], tokens[:, 1:])
    matrices = sum(held.parameter.numel() for held in learner.stage.held if held.decay)
    vectors = sum(held.parameter.numel() for held in learner.stage.held if not held.decay)
    return measured.bytes, matrices, vectors


class Logged(MemoryTransport):
    """Remembers what was summed."""

    def __init__(self, world, rank):
        super().__init__(world, rank)
        self.sizes = []

    def all_reduce(self, tensor, group, *reduction):
        self.sizes.append((tensor.dtype, tensor.numel()))
        return super().all_reduce(tensor, group, *reduction)


@pytest.mark.parametrize("sparsity", first_of(0.9, 0.8, 0.5))
def test_with_one_bucket_it_is_what_samo_says(monkeypatch, sparsity):
    """24·(1 - p) + 2 bytes a parameter (Singh and Bhatele, IPDPS 2023, equation 4); of vectors 16."""
    found, matrices, vectors = peak(monkeypatch, sparsity, bucket_mib=100.0)
    expected = (24 * (1 - sparsity) + 2) * matrices + 16 * vectors
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9])
@pytest.mark.slow
def test_with_small_buckets_the_fp32_gradient_is_that_of_one(monkeypatch, sparsity):
    found, matrices, vectors = peak(monkeypatch, sparsity, bucket_mib=0.25)
    expected = (20 * (1 - sparsity) + 2) * matrices + 16 * vectors + 0.25 * 1024**2
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_what_is_summed_over_data_is_compressed(sparsity):
    """The gradients that are kept, in the type the model computes in, and padding; loss, norm and a request besides."""
    settings = experiment(sparsity, bucket_mib=100.0)

    def work(transport):
        learner = Learner(settings, Decomposition(data=2), transport, CPU)
        Pruner(settings.training.pruning, learner, lambda *_, **__: None).begin(0)
        transport.sizes.clear()
        tokens = torch.ones(1, LARGE.sequence + 1, dtype=torch.int64)
        learner.step(Step(1, 0.1), tokens[:, :-1], tokens[:, 1:])
        trained = sum(slot.gradient.numel() for slot in learner.gradients.slots)
        return transport.sizes, trained, len(learner.gradients.slots), LARGE.parameters

    for sizes, trained, parameters, whole in in_threads(2, work, Logged):
        *gradients, last = sizes
        assert last == (torch.float64, 3)
        assert {dtype for dtype, _ in gradients} == {torch.bfloat16}
        assert trained <= sum(size for _, size in gradients) <= trained + 64 * (parameters + 4)
        assert trained == pytest.approx((1 - sparsity) * whole, rel=0.05)


def test_a_network_that_is_pruned_before_the_first_step_never_has_dense_state():
    """Only its weights are there while masks are drawn."""
    gc.collect()
    before, settings = storages(), experiment(0.9, bucket_mib=100.0)
    learner = Learner(settings, Decomposition(), MemoryTransport(World(1), 0), CPU)
    assert added(before) == pytest.approx(2 * LARGE.parameters, rel=0.01)
    Pruner(settings.training.pruning, learner, lambda *_, **__: None).begin(0)
    assert added(before) == pytest.approx((20 * 0.1 + 2) * LARGE.parameters, rel=0.03)


def added(before):
    """Bytes of tensors that were not there before."""
    live = storages()
    return sum(live[place] for place in live.keys() - before.keys())
