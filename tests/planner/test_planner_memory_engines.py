"""What engines keep: Korthikanti et al. 2022, and what must hold whatever runs."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdl.planner import memory, state
from hpcdl.planner.activations import Layer
from hpcdl.planner.engines import ENGINES, find_engine
from hpcdl.planner.keeping import Recipe
from hpcdl.planner.moments import TENSORS
from hpcdl.planner.space import Candidates
from hpcdl.planner.stages import layer_counts, layers_of_ranks
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training

STATE = ("weights", "gradients", "optimizer state")
SMALL = Model(layers=8, hidden=512, heads=8, vocab=1024, sequence=256)
# Figures 1 and 7 of arXiv 2205.05198, analytical: layers, hidden, heads, tensor, pipeline, microbatch, chunks; GiB
# of parameters and optimizer; GiB of activations with tensor parallelism alone; then per cent of those with
# sequence parallelism, selective recomputation, both, and full recomputation.
KORTHIKANTI = {
    "22B": ((48, 6144, 64, 8, 1, 4, 1), 45.5625, 59.25, (66.84, 49.42, 16.18, 7.64)),
    "175B": ((96, 12288, 96, 8, 8, 1, 3), 45.5625, 66.8438, (62.04, 56.53, 18.49, 8.71)),
    "530B": ((105, 20480, 128, 8, 35, 1, 3), 31.6406, 114.023, (58.31, 62.04, 20.27, 9.42)),
    "1T": ((128, 25600, 160, 8, 64, 1, 1), 32.959, 131.25, (58.31, 62.04, 20.27, 9.42)),
}
TECHNIQUES = [
    {"sequence_parallel": True},
    {"recompute": "selective"},
    {"sequence_parallel": True, "recompute": "selective"},
    {"recompute": "full"},
]


def by(case, name, **changed):
    return replace(case, engine=replace(find_engine(name), **changed))


def held(case, **degrees):
    terms = memory.device_memory(case, Candidates.of(Decomposition(**degrees)))
    return {name: float(count[0]) for name, count in terms.items()}


def korthikanti(case_on, size):
    (layers, hidden, heads, tensor, pipeline, microbatch, chunks), *printed = KORTHIKANTI[size]
    model = Model(layers=layers, hidden=hidden, heads=heads, vocab=51200, sequence=2048)
    training = Training(global_batch=2048, precision="fp16")
    case = by(case_on(nodes=tensor * pipeline // 4, model=model, training=training), "megatron")
    return case, dict(x=tensor, pipeline=pipeline, microbatch=microbatch, interleave=chunks), printed


@pytest.mark.parametrize("size", KORTHIKANTI)
def test_activations_of_megatron_are_korthikantis(case_on, size):
    """Layers alone, to 0.15 points as printed; held are p microbatches, with v chunks 1 + (p-1)/(pv) as many."""
    case, degrees, (_, whole, percents) = korthikanti(case_on, size)
    p, v = degrees["pipeline"], degrees["interleave"]
    waiting = p + (p - 1) / v if v > 1 else p
    layers = np.array([case.model.layers // p])

    def kept(**technique):
        c = Candidates.of(Decomposition(**degrees, **technique))
        return float(Layer.of(case, c).kept(c, layers, np.array([waiting]))[0])

    assert kept() / 2**30 == pytest.approx(whole, rel=1e-5)
    for technique, percent in zip(TECHNIQUES, percents, strict=True):
        assert 100 * kept(**technique) / kept() == pytest.approx(percent, abs=0.15)


@pytest.mark.parametrize("size", KORTHIKANTI)
def test_the_first_stage_holds_them_with_masks_of_the_embedding(case_on, size):
    """A byte for each element that enters the first layer, of every microbatch: 2.4 % in the largest."""
    case, degrees, (_, whole, _) = korthikanti(case_on, size)
    assert held(case, **degrees)["activations"] / 2**30 == pytest.approx(whole, rel=0.025)


@pytest.mark.parametrize("size", KORTHIKANTI)
def test_parameters_and_optimizer_of_megatron_are_eighteen_bytes(case_on, size):
    """Their bars leave out the embedding."""
    case, degrees, (printed, _, _) = korthikanti(case_on, size)
    shard = state.shard(case, Candidates.of(Decomposition(**degrees)), is_last=False)
    assert 18 * (shard.layers * shard.layer)[0] / 2**30 == pytest.approx(printed, rel=1e-4)


@pytest.mark.parametrize(
    ("engine", "precision", "zero", "whole", "shared"),
    [
        ("megatron", "fp16", 0, 18, 0),
        ("megatron", "bf16", 1, 6, 12),
        ("megatron-deepspeed", "fp16", 1, 4, 12),
        ("megatron-deepspeed", "bf16", 1, 8, 12),
        ("any", "bf16", 2, 2, 16),
        ("any", "bf16", 3, 0, 18),
        ("torchtitan", "bf16", 3, 0, 16),
        ("fsdp", "bf16", 2, 2, 16),
        ("deepspeed-zero3", "fp16", 3, 0, 16),
        ("axonn", "fp16", 0, 20, 0),
        ("any", "fp32", 1, 8, 8),
        ("any", "fp32", 2, 4, 12),
        ("any", "fp32", 3, 0, 16),
    ],
)
def test_state_by_recipe_and_sharding(case_on, engine, precision, zero, whole, shared):
    """Bytes a parameter of every rank, and of all together: Rajbhandari et al., arXiv 1910.02054, and the engines'."""
    case = by(case_on(nodes=4, training=Training(global_batch=64, precision=precision)), engine)
    found = held(case, data=16, zero=zero, microbatch=4)
    assert sum(found[name] for name in STATE) == pytest.approx((whole + shared / 16) * SMALL.parameters)


def test_gradients_copied_for_the_update_are_there_when_activations_are_gone(case_on):
    small = by(case_on(training=Training(global_batch=64, precision="fp16")), "megatron-deepspeed")
    updating, working = held(small), held(small, microbatch=64)
    assert updating["main gradients"] == pytest.approx(6 * SMALL.parameters)
    assert updating["activations"] == updating["logits"] == 0
    assert working["main gradients"] == 0 < working["activations"]


def test_zero_3_holds_what_z_does(case_on):
    """Norms and biases are whole with z."""
    model = Model(layers=8, hidden=2048, heads=16, vocab=1024, sequence=256)
    case = by(case_on(nodes=2, model=model), "any")
    sharded, cut = held(case, data=8, zero=3), held(case, z=8)
    for name in STATE:
        assert sharded[name] == pytest.approx(cut[name], rel=0.02)


def test_sharded_layers_are_gathered_one_ahead_and_reduced_in_fp32(case_on):
    model = Model(layers=8, hidden=512, heads=8, vocab=512, sequence=256)
    case = by(case_on(nodes=2, model=model, training=Training(global_batch=64)), "torchtitan")
    found = held(case, data=8, zero=3, microbatch=8)
    assert found["layer backward"] > 0
    assert found["working weights"] == pytest.approx((2 * 2 + 2 + 4) * 12 * 512**2)


def test_a_stage_of_torchtitan_keeps_its_weights_gathered_between_microbatches(case_on):
    case = by(case_on(nodes=4), "torchtitan")
    c = Candidates.of(Decomposition(data=8, pipeline=2, zero=3))
    shard = state.shard(case, c, is_last=False)
    found = memory.device_memory(case, c)
    assert found["working weights"][0] == pytest.approx(6 * shard.parameters[0])


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(ENGINES)),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["none", "selective", "full"]),
    st.integers(0, 3),
)
def test_nothing_that_saves_memory_costs_any(case_on, engine, x, pipeline, microbatch, recompute, zero):
    """State by every kind of sharding, and all tensors by recomputation, kernel, batch and context."""
    case = by(case_on(nodes=16), engine)
    d = dict(data=4, x=x, pipeline=pipeline, microbatch=microbatch, recompute=recompute, zero=zero)

    def all_of(case=case, **changed):
        found = held(case, **{**d, **changed})
        return sum(found[name] for name in TENSORS)

    def state_of(**changed):
        found = held(case, **{**d, **changed})
        return sum(found[name] for name in STATE)

    slack = 1 + 1e-9
    assert state_of(zero=min(3, zero + 1)) <= slack * state_of()
    assert state_of(x=2 * x) <= slack * state_of()
    assert state_of(pipeline=2 * pipeline) <= slack * state_of()
    assert (
        all_of(recompute="full")
        <= slack * all_of(recompute="selective")
        <= slack**2 * all_of(recompute="none")
    )
    assert all_of() <= slack * all_of(microbatch=2 * microbatch)
    kernels = [all_of(by(case, engine, attention=kernel)) for kernel in ("flash", "fused", "naive")]
    assert kernels == sorted(kernels)
    assert all_of(context=2) <= slack * all_of()
    if x > 1:
        assert all_of(sequence_parallel=True) <= slack * all_of()


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_parts_sum_to_the_device(case_on, engine):
    case = by(case_on(nodes=16, training=Training(global_batch=64, precision="fp16")), engine)
    c = Candidates.of(
        *(
            Decomposition(data=2, pipeline=p, x=x, zero=zero, recompute=recompute)
            for p in (1, 2, 4)
            for x in (1, 2)
            for zero in (0, 1, 2, 3)
            for recompute in ("none", "selective", "full")
        )
    )
    assert np.allclose(memory.total(memory.device_memory(case, c)), memory.device_bytes(case, c), rtol=1e-12)


@pytest.mark.parametrize(
    ("way", "microbatches"),
    [
        ({}, 4),
        ({"in_flight": 3}, 3),
        ({"interleave": 2}, 4 * (1 + 3 / 8)),
        ({"defer_weights": True}, 4),
        ({"defer_weights": True, "in_flight": 8}, 8),
    ],
    ids=str,
)
def test_static_schedules_hold_what_their_tables_say(case_on, way, microbatches):
    """On the first rank: 1F1B p, interleaved 1 + (p-1)/(pv) as many, ZB-1p p and ZB-2p 2p microbatches."""
    case = by(case_on(), "megatron", drops=False)
    layer = float(Layer.of(case, Candidates.of(Decomposition(pipeline=4))).whole[0])
    assert held(case, pipeline=4, **way)["activations"] == pytest.approx(microbatches * 2 * layer)


def test_the_last_stage_of_a_static_schedule_holds_one(case_on):
    """With a large vocabulary it is the fullest all the same."""
    model = Model(layers=8, hidden=512, heads=8, vocab=65536, sequence=256)
    case = by(case_on(model=model), "megatron", drops=False)
    found = held(case, pipeline=4)
    layer = float(Layer.of(case, Candidates.of(Decomposition(pipeline=4))).whole[0])
    assert found["logits"] > 256 * 65536 * 10
    assert found["activations"] == pytest.approx(2 * layer)


@pytest.mark.parametrize(
    ("layers", "stages", "counts"),
    [
        (22, 8, (2, 3, 3, 3, 3, 3, 3, 2)),  # as zero bubble's: arXiv 2401.10241, section 5.1
        (24, 8, (3,) * 8),
        (80, 12, (7,) * 8 + (6,) * 4),
        (22, 24, (0, *(1,) * 22, 0)),  # a chunk may hold the embedding alone
    ],
)
def test_others_cut_layers_evenly_or_count_embedding_and_head(case_on, layers, stages, counts):
    model = Model(layers=layers, hidden=64, heads=4, vocab=512, sequence=32)
    case = by(case_on(model=model), "megatron")
    assert layer_counts(case.model, case.engine, stages) == counts


def test_an_inner_stage_with_more_layers_is_the_fullest(case_on):
    model = Model(layers=22, hidden=512, heads=8, vocab=512, sequence=256)
    case = by(case_on(model=model), "megatron", drops=False)
    c = Candidates.of(Decomposition(pipeline=8))
    assert [int(count[0]) for count in layers_of_ranks(case, c)] == [2, 3, 2]
    layer = float(Layer.of(case, c).whole[0])
    assert held(case, pipeline=8)["activations"] == pytest.approx(7 * 3 * layer)


@pytest.mark.parametrize("engine", ["hpcdl", "megatron"])
def test_the_fullest_of_the_stages_is_the_devices_peak(case_on, engine):
    """In a pipeline one of the earlier ones, and the last where logits weigh more than what is in flight."""
    earlier = "inner" if engine == "megatron" else "first"
    for vocab, d, stage, moment in [
        (8192, Decomposition(), "last", "loss"),
        (8192, Decomposition(pipeline=8, microbatch=4), earlier, "layer"),
        (65536, Decomposition(pipeline=8, microbatch=4, recompute="full"), "last", "loss"),
    ]:
        model = Model(layers=22, hidden=512, heads=8, vocab=vocab, sequence=256)
        case = by(case_on(nodes=2, model=model), engine)
        peaks = memory.by_stage(case, d)
        assert (peaks[0].stage, peaks[0].moment) == (stage, moment)
        assert peaks[0].bytes == pytest.approx(memory.device_bytes(case, Candidates.of(d))[0])
        assert [peak.bytes for peak in peaks] == sorted((peak.bytes for peak in peaks), reverse=True)
    assert {peak.stage for peak in memory.by_stage(case, d)} == (
        {"first", "inner", "last"} if engine == "megatron" else {"first", "last"}
    )


def test_outputs_that_are_kept_count_once_a_microbatch_in_flight(case_on):
    case = by(case_on(training=Training(global_batch=64, precision="fp16")), "megatron")
    stream = 8 * 256 * 512 * 2
    d = dict(pipeline=4, microbatch=8, recompute="full")
    keeps = case.engine.keeps
    kept, gone = (
        held(by(case, "megatron", keeps=replace(keeps, outputs=stays)), **d) for stays in (True, False)
    )
    assert kept["activations"] - gone["activations"] == pytest.approx(4 * stream)


def test_experts_are_held_by_as_many_ranks_as_share_them(case_on):
    model = Model(layers=8, hidden=512, heads=8, vocab=1024, sequence=256, experts=8, active_experts=2)
    dense = SMALL.layer_parameters
    case = by(case_on(nodes=2, model=model), "any")
    whole, spread = (held(case, data=8, expert=expert) for expert in (1, 8))
    routed = 8 * 7 * 8 * 512**2  # what seven of eight experts have in eight layers
    assert whole["weights"] - spread["weights"] == pytest.approx(2 * routed, rel=0.01)
    assert spread["weights"] == pytest.approx(2 * (8 * dense + 1024 * 512), rel=0.05)
    shared = held(case, data=8, expert=8, zero=1)
    assert shared["optimizer state"] > spread["optimizer state"] / 8  # experts have no replicas to share with


def test_context_cuts_activations_and_its_ranks_share_state(case_on):
    case = by(case_on(nodes=2), "any")
    whole, cut = held(case, data=2, zero=1, microbatch=8), held(case, data=2, context=4, zero=1, microbatch=8)
    assert cut["activations"] == pytest.approx(whole["activations"] / 4)
    assert cut["optimizer state"] == pytest.approx(whole["optimizer state"] / 4)


def test_slack_is_no_more_than_there_is_room_for(case_on, small_memory):
    wide = case_on(nodes=2)
    d = dict(data=8, microbatch=8)
    loose = held(wide, **d)
    allocated = sum(loose[name] for name in TENSORS)
    fixed = loose["framework"] + loose["communicators"]
    tight = case_on(nodes=2, node=small_memory(str(int(1.05 * allocated + fixed))))
    assert loose["allocator slack"] == pytest.approx(0.10 * allocated)
    assert held(tight, **d)["allocator slack"] == pytest.approx(0.05 * allocated)
    full = case_on(nodes=2, node=small_memory(str(int(0.9 * allocated + fixed))))
    assert held(full, **d)["allocator slack"] == 0


def test_communicators_are_counted_by_axis_with_collectives(case_on):
    case = case_on(nodes=4, communicator_gib=1.5)
    count = {
        str(degrees): held(case, **degrees)["communicators"] / 2**30 / 1.5
        for degrees in (
            {},
            {"data": 4},
            {"pipeline": 4},
            {"data": 4, "pipeline": 4},
            {"data": 4, "x": 2, "z": 2},
        )
    }
    assert list(count.values()) == [0, 1, 0, 2, 4]


def test_recipes_are_named_by_precision():
    megatron = find_engine("megatron-deepspeed").keeps
    assert megatron.recipe("bf16") == Recipe(2, 6, 12)
    assert megatron.recipe("fp32") == Recipe(4, 4, 8)
