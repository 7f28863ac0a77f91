"""Whatever waits in host memory, training is what it is without."""

import shutil
from collections import Counter, defaultdict
from functools import partial

import pytest
import torch
from engine_keeping import experiment as keeping
from engine_keeping import tensors
from engine_keeping import trained as kept
from engine_runs import TRAINING, Run
from engine_worlds import GPT, LLAMA, in_threads
from quick import first_of
from safetensors.torch import load_file
from test_engine_update import (
    BATCH,
    CLIPPED,
    CPU,
    FREE,
    TIED,
    batches,
    experiment,
    learn,
    same,
    spoil,
    trained,
)

from hpcdl.engine import data_parallel
from hpcdl.engine.data_parallel import Gradients
from hpcdl.engine.groups import make_groups
from hpcdl.engine.learner import Learner
from hpcdl.engine.models.build import build_stage
from hpcdl.engine.optim.choosing import choose
from hpcdl.engine.optim.flat import Cut, Flat, Thrift
from hpcdl.engine.sparse.kept import Kept
from hpcdl.engine.tensor.parameters import Numerics
from hpcdl.engine.topology import Topology
from hpcdl.spec.decomposition import Decomposition, violations
from hpcdl.spec.entry import EntryModel

DEGREES = [
    {}, {"data": 2}, {"z": 2}, {"x": 2}, {"y": 2}, {"pipeline": 2}, {"data": 2, "zero": 1},
    {"data": 2, "z": 2, "zero": 1}, {"data": 2, "pipeline": 2, "zero": 1}, {"pipeline": 2, "x": 2, "z": 2},
    {"data": 2, "x": 2, "y": 2, "microbatch": 2}, {"pipeline": 2, "interleave": 2, "defer_weights": True},
    {"data": 2, "pipeline": 2, "interleave": 2, "microbatch": 1},
]  # fmt: skip
NAMES = [" ".join(f"{key} {value}" for key, value in degrees.items()) or "one" for degrees in DEGREES]
deep = TIED.model_copy(update={"layers": 4})


def assert_same(settings, degrees, **offload):
    """Losses and weights to the bit."""
    found = trained(settings, Decomposition(**degrees | offload))
    wanted = trained(settings, Decomposition(**degrees))
    for outcome, expected in zip(found[0], wanted[0], strict=True):
        assert outcome.loss == expected.loss
        assert outcome.grad_norm == pytest.approx(expected.grad_norm, rel=1e-7)
    assert found[1].keys() == wanted[1].keys()
    for name, value in wanted[1].items():
        assert torch.equal(found[1][name], value), name


@pytest.mark.parametrize("way", first_of("device", "host"))
@pytest.mark.parametrize("degrees", DEGREES, ids=NAMES)
def test_an_offloaded_optimizer_changes_no_bit(degrees, way):
    assert_same(experiment(deep, offload_step=way), degrees, offload="optimizer")


@pytest.mark.parametrize("degrees", DEGREES, ids=NAMES)
def test_weights_on_the_host_change_no_bit(degrees):
    """Clipped too, but where ranks share a norm: what lies on the host is shared out on its own."""
    optimizer = FREE if degrees.get("zero") else CLIPPED
    assert_same(experiment(deep, optimizer=optimizer), degrees, offload="parameters")


def test_weights_on_the_host_are_clipped_by_a_norm_that_ranks_share():
    settings, spread = experiment(deep), {"data": 2, "pipeline": 2, "zero": 1}
    found, wanted = (
        trained(settings, Decomposition(**spread, offload=offload)) for offload in ("parameters", "none")
    )
    same(found, wanted, 2e-6)


@pytest.mark.parametrize("way", ["device", "host"])
@pytest.mark.parametrize("overlap", [True, False], ids=["early", "late"])
def test_nor_does_it_where_weights_are_updated_at_once(way, overlap):
    settings = experiment(deep, optimizer=FREE, offload_step=way)
    late = settings.model_copy(
        update={
            "communication": settings.communication.model_copy(
                update={"overlap": settings.communication.overlap.model_copy(update={"optimizer": overlap})}
            )
        }
    )
    assert_same(late, {"data": 2, "pipeline": 2, "zero": 1}, offload="optimizer")


@pytest.mark.parametrize(
    "size", [{"bucket_mib": 0.001}, {"bucket_mib": 25.0}, {"buckets_per_chunk": 1}], ids=str
)
def test_sizes_of_buckets_change_nothing(size):
    settings = experiment(TIED, **{"optimizer": FREE} | size)
    assert_same(settings, {"data": 2, "z": 2}, offload="optimizer")


@pytest.mark.parametrize("way", ["device", "host"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_one_microbatch_is_the_same_to_the_bit(precision, way):
    """Gradients of one microbatch on one rank are not summed, so nothing is rounded that was not before."""
    untied = LLAMA.model_copy(update={"tied": False})
    settings = experiment(untied, precision=precision, optimizer=FREE, offload_step=way)
    assert_same(settings, {"microbatch": BATCH}, offload="optimizer")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_sums_of_gradients_are_rounded(precision):
    """To 8 and 11 bits: gradients have the type the model computes in."""
    settings = experiment(GPT, precision=precision)
    spread = {"data": 2, "pipeline": 2, "zero": 1}
    found = trained(settings, Decomposition(**spread, offload="optimizer"))
    wanted = trained(settings, Decomposition(**spread))
    for outcome, expected in zip(found[0], wanted[0], strict=True):
        assert outcome.loss == pytest.approx(expected.loss, rel=1e-3)
        assert outcome.grad_norm == pytest.approx(expected.grad_norm, rel=1e-2)


def test_an_overflow_leaves_what_lies_on_the_host_alone():
    settings = experiment(GPT, precision="fp16")

    def work(transport):
        learner = Learner(settings, Decomposition(data=2, offload="optimizer"), transport, CPU)
        learn(learner, settings, 1)
        before = [tensor.clone() for part in learner.parts() for tensor in part.tensors.values()]
        if transport.rank:
            spoil(learner)
        outcome = learn(learner, settings, 2, begin=1)[0]
        after = [tensor for part in learner.parts() for tensor in part.tensors.values()]
        return outcome.skipped and all(map(torch.equal, before, after))

    assert all(in_threads(2, work))


def test_two_chunks_of_the_host_have_room_on_the_device_at_once(monkeypatch):
    """However far backward is ahead of the sums."""
    away, most = defaultdict(set), Counter()
    reduce, finish = data_parallel._Home.reduce, data_parallel._Home.finish

    def reduced(home):
        if home.chunk.kind.on_host:
            rank = home.chunk.peers.transport.rank
            away[rank].add(home)
            most[rank] = max(most[rank], len(away[rank]))
        reduce(home)

    def finished(home):
        finish(home)
        away[home.chunk.peers.transport.rank].discard(home)

    monkeypatch.setattr(data_parallel._Home, "reduce", reduced)
    monkeypatch.setattr(data_parallel._Home, "finish", finished)
    trained(experiment(deep), Decomposition(data=2, offload="parameters"))
    assert most == {0: 2, 1: 2}


@pytest.mark.parametrize("spread", [{}, {"z": 2}, {"pipeline": 2}], ids=str)
@pytest.mark.parametrize(
    "offload",
    [{"offload": "parameters"}, {"offload": "optimizer", "recompute": "full", "offload_activations": True}],
    ids=["parameters", "activations"],
)
def test_an_evaluation_finds_the_same_loss(offload, spread):
    settings = experiment(deep)

    def work(transport, decomposition):
        learner = Learner(settings, decomposition, transport, CPU)
        learn(learner, settings, 1)
        rows = batches(settings)[1].chunk(decomposition.batch_shards)[learner.topology.batch_shard]
        return learner.evaluate(rows[:, :-1], rows[:, 1:])

    with_it, without = (
        in_threads(one.ranks, partial(work, decomposition=one))
        for one in (Decomposition(**spread, **offload), Decomposition(**spread))
    )
    assert with_it == without


# Pruned weights: buffers hold what is kept of them


def pruned_step(transport, decomposition, way):
    """The weights after one step of a stage of whose matrices some elements are pruned."""
    settings = experiment(deep, offload_step=way)
    topology = Topology(decomposition, transport.rank)
    groups, numerics = make_groups(transport, topology, tied=deep.tied), Numerics(torch.float32, CPU, 0)
    stage = build_stage(deep, topology, groups, numerics)
    generator = torch.Generator().manual_seed(7)
    kept = {
        one.name: Kept.of(torch.rand(one.parameter.numel(), generator=generator) < 0.3)
        for one in stage.held
        if one.sharding.flat
    }
    offload = decomposition.offload
    thrift = Thrift(None if offload == "none" else numerics.host, kept, matrices=offload == "parameters")
    flat = Flat(stage.held, topology, groups, Cut(0.002, 2, sharded=decomposition.zero == 1), thrift)
    gradients, stepping = (
        Gradients(flat, groups.ends, early=True),
        choose(settings.training, flat, groups.world),
    )
    gradients.begin(microbatches=2)
    for seed in range(2):
        tokens = torch.randint(0, 256, (2, deep.sequence), generator=generator.manual_seed(seed))
        stage.chunks[0](tokens, tokens).backward()
    stage.later.settle()
    for chunk in gradients.finished():
        for bucket in chunk.buckets:
            stepping.stepping.update(bucket, 1e-2, 0.5)
        stepping.stepping.join()
        gradients.publish(chunk)
    gradients.settle()
    for one in stage.held:
        assert one.name not in kept or not one.parameter.detach().view(-1)[~kept[one.name].mask].any()
    return [one.parameter.detach().clone() for one in stage.held]


@pytest.mark.parametrize(
    ("offload", "way"), [("optimizer", "device"), ("optimizer", "host"), ("parameters", "host")]
)
@pytest.mark.parametrize("degrees", [{}, {"data": 2}, {"data": 2, "zero": 1}], ids=str)
def test_pruned_weights_are_updated_alike(degrees, offload, way):
    found, wanted = (
        in_threads(one.ranks, partial(pruned_step, decomposition=one, way=way))
        for one in (Decomposition(**degrees, offload=offload), Decomposition(**degrees))
    )
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(map(torch.equal, ours, theirs))


# Checkpoints

SPREAD = {"data": 2, "pipeline": 2, "zero": 1}


@pytest.mark.parametrize(("offload", "precision"), [("optimizer", "fp32"), ("parameters", "bf16")])
@pytest.mark.parametrize("degrees", [{}, SPREAD], ids=["one", "spread"])
def test_training_goes_on_to_the_bit(tmp_path, degrees, offload, precision):
    settings, decomposition = keeping(precision=precision), Decomposition(**degrees, offload=offload)
    undisturbed, _ = kept(tmp_path / "a", 4, decomposition, settings)
    first, _ = kept(tmp_path / "b", 2, decomposition, settings)
    second, _ = kept(tmp_path / "b", 4, decomposition, settings)
    assert first + second == undisturbed
    ours, theirs = (tensors(tmp_path / run / "4") for run in "ab")
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def joined(folder):
    """What the ranks wrote of each parameter, whoever has which run of it."""
    runs = {}
    for shard in folder.glob("*.safetensors"):
        for key, values in load_file(shard).items():
            name, kind, span = key.split("|")
            runs.setdefault((name, kind), {})[int(span.split("-")[0])] = values
    return {key: torch.cat([values for _, values in sorted(found.items())]) for key, found in runs.items()}


@pytest.mark.parametrize(
    ("before", "after"), [("none", "optimizer"), ("optimizer", "parameters"), ("parameters", "none")]
)
def test_checkpoints_do_not_know_where_the_state_was(tmp_path, before, after):
    """In fp32, where the two train alike, also through a checkpoint of the other."""
    losses, _ = kept(tmp_path / "a", 4, Decomposition(**SPREAD))
    first, _ = kept(tmp_path / "b", 2, Decomposition(**SPREAD, offload=before))
    second, _ = kept(tmp_path / "b", 4, Decomposition(**SPREAD, offload=after))
    assert first + second == losses
    ours, theirs = (joined(tmp_path / run / "4") for run in "ab")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


# Real processes


@pytest.mark.parametrize("offload", first_of("optimizer", "parameters"))
def test_processes_tell_where_they_step_and_go_on_to_the_bit(tmp_path, offload):
    changes = {
        "training": TRAINING | {"precision": "bf16", "steps": 4},
        "checkpoint": {"every": 2, "keep": 2},
    }
    decomposition = Decomposition(data=2, microbatch=2, zero=1, offload=offload)
    run = Run(tmp_path, decomposition, **changes).complete()
    undisturbed = run.losses()
    shutil.rmtree(run.folder.checkpoints / "4")
    again = run.complete(attempt=2).losses()
    assert undisturbed[-1] < undisturbed[0] - 0.5
    assert again == [*undisturbed, *undisturbed[2:]]
    for told in (event.detail for event in run.events() if event.kind == "offload"):
        faster = min(("device", "host"), key=lambda way: told[f"{way}_seconds"])
        assert told["step"] == faster


# Models of one's own


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offload": "parameters"}, "offload parameters: nothing is known of when layers of your own"),
        ({"offload_activations": True, "recompute": "full"}, "offload_activations: what a model of your own"),
    ],
    ids=["parameters", "activations"],
)
def test_what_a_model_of_ones_own_cannot_leave_on_the_host_is_refused_by_name(change, words):
    entry = EntryModel(entry="package.module:function")
    assert words in " ".join(violations(Decomposition(**change), entry, 8).values())
    assert not violations(Decomposition(offload="optimizer"), entry, 8)
