"""What lies on the host is not computed with on the device, and the device holds what the formulas say."""

from collections import Counter
from functools import partial
from itertools import count

import pytest
import torch
from engine_memory import Border, Ledger
from engine_worlds import in_threads
from test_engine_offload import deep
from test_engine_update import CPU, experiment, learn

from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.learner import Learner
from hpcdl.engine.optim import adamw
from hpcdl.engine.tensor.fetch import Fetch
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model

WIDE = Model(family="llama", layers=4, hidden=128, heads=4, ffn=512, vocab=512, sequence=4)
BUCKET = 2**16  # elements
SIZES = {"global_batch": 2, "bucket_mib": BUCKET * 4 / 2**20}


# Who computes with what


@pytest.mark.parametrize(("way", "precision"), [("device", "fp32"), ("host", "bf16")])
@pytest.mark.parametrize(
    "degrees",
    [
        {"offload": "optimizer"}, {"offload": "parameters"}, {"offload": "parameters", "microbatch": 2},
        {"offload": "parameters", "data": 2, "zero": 1}, {"offload": "parameters", "z": 2, "data": 2},
        {"offload": "parameters", "pipeline": 2, "recompute": "full", "offload_activations": True},
    ],
    ids=str,
)  # fmt: skip
def test_only_copies_reach_from_one_memory_into_the_other(way, degrees, precision):
    settings = experiment(deep, precision=precision, offload_step=way)

    def work(transport):
        learner = Learner(settings, Decomposition(**degrees), transport, CPU)
        host = learner._flat.thrift.host
        with Border(host) as border:
            learn(learner, settings, 2)
        assert learner.parts()
        assert all(host.holds(tensor) for part in learner.parts() for tensor in part.tensors.values())
        return border.crossings

    assert all(crossings > 0 for crossings in in_threads(Decomposition(**degrees).ranks, work))


def test_the_border_sees_who_crosses_it():
    settings = experiment(deep)
    learner = in_threads(1, partial(_learner, settings=settings, offload="optimizer"))[0]
    bucket = learner._flat.buckets[0]
    with Border(learner._flat.thrift.host):
        bucket.parameter.copy_(bucket.master)
        bucket.master.float().mul_(bucket.exp_avg)
        with pytest.raises(AssertionError, match="add_ reads both memories"):
            bucket.parameter.add_(bucket.master)
        with pytest.raises(AssertionError, match="mul reads both memories"):
            bucket.parameter.mul(bucket.master[:64].sum(0, keepdim=True))


def _learner(transport, settings, **degrees):
    return Learner(settings, Decomposition(**degrees), transport, CPU)


# How much lies where


def step_of(monkeypatch, offload, precision, way="device"):
    """The parameters of a model, and the bytes there are every eighth time that some of them are stepped."""
    settings = experiment(WIDE, precision=precision, offload_step=way, **SIZES)

    def work(transport):
        ledger = Ledger()
        learner = _learner(transport, settings, offload=offload)
        host = learner._flat.thrift.host or HostMemory(CPU)
        counts = []

        def sampled(*args, **kwargs):
            if next(turn) % 8 == 0:
                counts.append(ledger.count(learner, host))
            torch_adamw(*args, **kwargs)

        torch_adamw, turn = adamw.adamw, count()
        monkeypatch.setattr(adamw, "adamw", sampled)
        learn(learner, settings, 1)
        return learner.parameters, counts

    return in_threads(1, work)[0]


def total(counted, place):
    return sum(size for (_, where), size in counted.items() if where == place)


def peak(counts, place):
    return max(total(counted, place) for counted in counts)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.slow
def test_the_device_holds_4_bytes_a_parameter_and_16_a_bucket_element(monkeypatch, precision):
    """Singh and Bhatele, IPDPS 2022, section V-B; master and moments are on the host."""
    parameters, counts = step_of(monkeypatch, "optimizer", precision)
    assert peak(counts, "device") == pytest.approx(4 * parameters + 16 * BUCKET, rel=0.02)
    assert peak(counts, "host") == pytest.approx(12 * parameters, rel=0.02)
    assert counts[-1]["weights", "device"] == pytest.approx(2 * parameters, rel=0.01)
    assert counts[-1]["gradients", "device"] == pytest.approx(2 * parameters, rel=0.01)
    assert counts[-1]["state", "device"] == 0


@pytest.mark.slow
def test_stepped_on_the_host_the_device_holds_4_bytes_a_parameter(monkeypatch):
    """On the host there are two halves of a bucket on the wire, and an fp32 gradient of one of them."""
    parameters, counts = step_of(monkeypatch, "optimizer", "bf16", way="host")
    # On one machine that gradient, which nobody keeps, counts as the device's.
    assert peak(counts, "device") == pytest.approx(4 * parameters + 4 * BUCKET // 2, rel=0.02)
    assert peak(counts, "host") == pytest.approx(12 * parameters + 2 * BUCKET, rel=0.02)


@pytest.mark.parametrize(("precision", "each"), [("bf16", 2 + 4 + 12), ("fp32", 4 + 4 + 8)])
@pytest.mark.slow
def test_without_offload_all_of_it_is_on_the_device(monkeypatch, precision, each):
    parameters, counts = step_of(monkeypatch, "none", precision)
    assert peak(counts, "device") == pytest.approx(each * parameters, rel=0.02)
    assert peak(counts, "host") == 0


@pytest.mark.parametrize(("precision", "each"), [("bf16", 2 + 2 + 12), ("fp32", 4 + 4 + 8)])
@pytest.mark.slow
def test_with_weights_on_the_host_the_device_holds_vectors_alone(monkeypatch, precision, each):
    """Of a matrix nothing is left there, however many there are; in fp32 it is its own master."""
    parameters, counts = step_of(monkeypatch, "parameters", precision)
    vectors = WIDE.hidden * (2 * WIDE.layers + 1)
    assert peak(counts, "host") == pytest.approx(each * parameters, rel=0.02)
    assert counts[-1]["weights", "device"] <= 4 * vectors * 1.1
    assert counts[-1]["gradients", "device"] <= 4 * vectors * 1.1


def test_two_weights_are_fetched_at_once_and_no_more(monkeypatch):
    settings = experiment(WIDE, precision="bf16", **SIZES)
    live, most = Counter(), []
    gather = Fetch.gather

    def counted(fetch, shard):
        coming = gather(fetch, shard)
        storage = coming.tensor.untyped_storage()
        live[storage._cdata] = torch.multiprocessing.reductions.StorageWeakRef(storage)
        most.append(sum(not weak.expired() for weak in live.values()))
        return coming

    monkeypatch.setattr(Fetch, "gather", counted)
    learn(in_threads(1, partial(_learner, settings=settings, offload="parameters"))[0], settings, 2)
    assert len(most) > 2 * WIDE.layers * 4
    assert max(most) == 2
