"""Copies beside computation wait for each other where they must: what a GPU would be free to reorder."""

import pytest
import torch
from engine_races import CURRENT, Races
from engine_worlds import GPT, in_threads
from quick import one_in
from test_engine_offload_step import bucket_of
from test_engine_update import CLIPPED, CPU, FREE, TIED, experiment, learn

from hpcdl.engine.groups import Peers
from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.lane import Lane
from hpcdl.engine.learner import Learner
from hpcdl.engine.optim.adamw import AdamW
from hpcdl.engine.optim.offload import Device, Host, Room
from hpcdl.engine.tensor.fetch import Fetch
from hpcdl.engine.tensor.prefetch import Prefetch
from hpcdl.engine.tensor.waiting import Vault
from hpcdl.spec.decomposition import Decomposition

WAITING = {"recompute": "full", "offload_activations": True}
THRIFT = [
    {"offload": "optimizer"}, {"offload": "parameters"}, WAITING, WAITING | {"offload": "parameters"},
]  # fmt: skip


def raced(monkeypatch, settings, degrees):
    """Two steps with everything watched, and what is kept of them read."""

    def work(transport):
        learner = Learner(settings, Decomposition(**degrees), transport, CPU)
        host = learner._flat.thrift.host or learner.stage.chunks[0]._runner._vault._host
        with Races(host).watch(monkeypatch):
            learn(learner, settings, 2)
            for part in learner.parts():
                for tensor in part.tensors.values():
                    tensor.clone()
            return learner.counters()

    return in_threads(1, work)[0]


@pytest.mark.parametrize(
    ("optimizer", "precision"), [(CLIPPED, "fp32"), (FREE, "bf16")], ids=["clip fp32", "free bf16"]
)
@pytest.mark.parametrize("way", ["device", "host"])
@pytest.mark.parametrize("thrift", one_in(2, THRIFT), ids=str)
def test_nobody_reads_what_is_not_yet_written(monkeypatch, thrift, way, optimizer, precision):
    settings = experiment(TIED, precision=precision, optimizer=optimizer, offload_step=way)
    assert raced(monkeypatch, settings, thrift)["updates"] == 2


@pytest.mark.parametrize("way", [Device, Host])
def test_buckets_of_an_odd_number_are_in_order_from_step_to_step(monkeypatch, way):
    """Although the host never waits for the device, and each slot would have another bucket if it went on."""
    adamw, host = AdamW(FREE), HostMemory(CPU)
    buckets = [bucket_of(length, torch.bfloat16, host) for length in (64, 192, 128)]
    room = Room.of(buckets)
    stepping = Device(adamw, CPU, room) if way is Device else Host(adamw, host, room)
    with Races(host).watch(monkeypatch):
        for _ in range(3):
            for bucket in buckets:
                stepping.update(bucket, 1e-2)
            stepping.join()


# Nobody waits for more than it needs


def test_a_weight_is_used_while_the_next_one_is_fetched(monkeypatch):
    host = HostMemory(CPU)
    shards = [host.zeros(4) for _ in range(4)]
    fetch = Fetch(in_threads(1, lambda transport: Peers(transport, (0,), None))[0], CPU)
    prefetch, lanes = Prefetch(fetch), {fetch._lane, fetch._other}
    with Races(host).watch(monkeypatch) as races:
        for learned in (False, True):
            prefetch.begin("pass")
            for place, shard in enumerate(shards):
                prefetch.take(shard).exp()
                under_way = [lane for lane in lanes if not races.knows(CURRENT, lane)]
                assert len(under_way) == (learned and place + 1 < len(shards))
            prefetch.end()


def test_a_bucket_travels_while_another_is_stepped(monkeypatch):
    host = HostMemory(CPU)
    buckets = [bucket_of(length, torch.bfloat16, host) for length in (64, 128)]
    stepping = Device(AdamW(FREE), CPU, Room.of(buckets))
    one, two = (slot.lane for slot in stepping._slots)
    with Races(host).watch(monkeypatch) as races:
        for bucket in buckets:
            stepping.update(bucket, 1e-2)
        assert not races.knows(one, two)
        assert not races.knows(two, one)
        assert not races.knows(CURRENT, two)
        stepping.join()
        assert races.knows(CURRENT, one)
        assert races.knows(CURRENT, two)


def test_backward_goes_on_while_an_activation_comes_back(monkeypatch):
    vault, waiting = Vault(HostMemory(CPU)), None
    with Races(vault._host).watch(monkeypatch) as races:
        value = torch.ones(3, requires_grad=True)
        kept = []
        for _ in range(3):
            value, waiting = vault.recomputed(torch.exp, value * 1e-2, waiting)
            kept.append(waiting)
        kept[2].take().exp()
        assert not races.knows(CURRENT, vault._lane), "the one before is under way"
        kept[1].take().exp()
        kept[0].take().exp()
        assert races.knows(CURRENT, vault._lane)


# Whoever forgets to wait is found


@pytest.mark.parametrize(
    ("thrift", "way", "forgotten"),
    [
        ({"offload": "optimizer"}, "device", "follow"),
        ({"offload": "optimizer"}, "device", "join"),
        ({"offload": "optimizer"}, "host", "follow"),
        ({"offload": "optimizer"}, "host", "wait"),
        ({"offload": "optimizer"}, "host", "join"),
        ({"offload": "parameters"}, "host", "wait"),
        ({"offload": "parameters"}, "host", "join"),
        (WAITING, "host", "follow"),
        (WAITING, "host", "wait"),
    ],
)
def test_whoever_forgets_to_wait_is_found(monkeypatch, thrift, way, forgotten):
    settings = experiment(GPT, offload_step=way)
    watch = Races.watch

    def forgetting(races, patch):
        watch(races, patch)
        patch.setattr(Lane, forgotten, lambda lane: None)
        return races

    monkeypatch.setattr(Races, "watch", forgetting)
    with pytest.raises(AssertionError, match="does not wait for"):
        raced(monkeypatch, settings, thrift)
