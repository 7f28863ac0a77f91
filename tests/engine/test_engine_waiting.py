"""Activations that wait on the host: none is left on the device, they come back in time, and nothing changes."""

import pytest
import torch
from engine_worlds import GPT, in_threads
from quick import one_in
from test_engine_offload import assert_same, deep
from test_engine_recompute import BYTES, LONG, NAMES, Alive
from test_engine_update import CPU, batches, experiment

from hpcdl.engine.groups import make_groups
from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.learner import Learner
from hpcdl.engine.models.build import build_stage
from hpcdl.engine.tensor.dropout import Rows
from hpcdl.engine.tensor.parameters import Numerics
from hpcdl.engine.tensor.waiting import Vault, Waiting
from hpcdl.engine.topology import Topology
from hpcdl.spec.decomposition import Decomposition

DROPPING = deep.model_copy(update={"dropout": 0.1})
DEGREES = [
    {}, {"recompute_every": 2}, {"data": 2, "zero": 1}, {"x": 2, "z": 2}, {"pipeline": 2, "y": 2},
    {"pipeline": 2, "interleave": 2, "microbatch": 2}, {"pipeline": 2, "defer_weights": True},
    {"pipeline": 2, "recompute_every": 2, "z": 2, "offload": "optimizer"},
]  # fmt: skip


@pytest.mark.parametrize("model", [deep, DROPPING], ids=["plain", "dropping"])
@pytest.mark.parametrize("degrees", one_in(2, DEGREES), ids=str)
def test_waiting_activations_change_no_bit(degrees, model):
    assert_same(experiment(model), {"recompute": "full"} | degrees, offload_activations=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_nor_in_half_precision(precision):
    spread = {"recompute": "full", "pipeline": 2, "microbatch": 2}
    assert_same(experiment(GPT, precision=precision), spread, offload_activations=True)


def forward(model, **recompute):
    """Bytes that a forward leaves on the device and on the host, before and after its backward."""
    decomposition = Decomposition(recompute="full", **recompute)
    stage, host = in_threads(1, lambda transport: staged(transport, model, decomposition))[0]
    tokens = torch.zeros(2, model.sequence, dtype=torch.long)
    with Alive(stage.parameters()) as alive:
        loss = stage.chunks[0](tokens, tokens, Rows(1, 0))
    before = host.held
    on_device = alive.bytes() - before
    loss.backward()
    return on_device, before, host.held


def staged(transport, model, decomposition):
    topology, numerics = Topology(decomposition, 0), Numerics(torch.float32, CPU, 0)
    groups = make_groups(transport, topology, tied=model.tied)
    return build_stage(model, topology, groups, numerics), numerics.host


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("model", LONG, ids=NAMES)
def test_streams_wait_on_the_host_and_nowhere_else(model, every):
    stream = 2 * model.sequence * model.hidden * BYTES
    kept, nothing, _ = forward(model, recompute_every=every)
    left, waiting, after = forward(model, recompute_every=every, offload_activations=True)
    groups = model.layers // every
    assert (nothing, waiting, after) == (0, groups * stream, 0)
    assert kept - left == groups * stream


def test_each_comes_back_one_ahead_of_its_use(monkeypatch):
    told = []
    begin, take = Waiting.begin, Waiting.take
    numbers = {}

    def number(waiting):
        return numbers.setdefault(id(waiting), len(numbers))

    def begun(waiting):
        if waiting._room is not None:
            told.append(f"begin {number(waiting)}")
        begin(waiting)

    def taken(waiting):
        told.append(f"take {number(waiting)}")
        return take(waiting)

    monkeypatch.setattr(Waiting, "begin", begun)
    monkeypatch.setattr(Waiting, "take", taken)
    vault, waiting = Vault(HostMemory(CPU)), None
    value = torch.ones(3, requires_grad=True)
    for _ in range(3):
        value, waiting = vault.recomputed(torch.exp, value * 1e-2, waiting)
        number(waiting)
    value.sum().backward()
    assert told == ["take 2", "begin 2", "begin 1", "take 1", "begin 0", "take 0"]


def test_an_evaluation_leaves_nothing_on_the_host(monkeypatch):
    decomposition = Decomposition(recompute="full", offload_activations=True)
    settings = experiment(GPT)

    def work(transport):
        learner = Learner(settings, decomposition, transport, CPU)
        rows = batches(settings)[0]
        monkeypatch.setattr(Waiting, "__init__", None)
        return learner.evaluate(rows[:, :-1], rows[:, 1:])

    assert in_threads(1, work)[0] > 0
