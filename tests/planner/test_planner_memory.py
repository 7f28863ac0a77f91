import numpy as np
import pytest

from hpcdl.planner import memory, state
from hpcdl.planner.choices import Space
from hpcdl.planner.estimate import memory_tree
from hpcdl.planner.space import Candidates
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import PRESETS, Model
from hpcdl.spec.training import Training

STATE = ("weights", "gradients", "optimizer state")


def one(case, **degrees):
    terms = memory.device_memory(case, Candidates.of(Decomposition(**degrees)))
    return {name: float(value[0]) for name, value in terms.items()}


@pytest.mark.parametrize(("precision", "recipe"), [("fp32", 16), ("bf16", 18)])
@pytest.mark.parametrize("preset", PRESETS)
def test_state_of_an_unsharded_model_is_its_recipe(case_on, preset, precision, recipe):
    """fp32: 4 + 4 + 8; bf16 with fp32 gradients and main copy: 2 + 4 + 12 (Megatron-LM's 18)."""
    model = Model(preset=preset)
    held = one(case_on(model=model, training=Training(precision=precision)))
    assert sum(held[name] for name in STATE) == pytest.approx(recipe * model.parameters)


def test_matrices_and_their_state_shrink_with_x_y_and_z(case_on):
    """What is left of the whole is norms, biases and positions."""
    case = case_on(nodes=2)
    whole, cut = one(case), one(case, x=2, y=2, z=2)
    for name in STATE:
        assert cut[name] == pytest.approx(whole[name] / 8, rel=0.03)


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_stages_hold_all_parameters_and_a_tied_weight_twice(case_on, stages):
    model = Model(layers=8, hidden=64, heads=4, vocab=512, sequence=32)
    case, c = case_on(nodes=2, model=model), Candidates.of(Decomposition(pipeline=stages))
    first, last = (state.shard(case, c, is_last=end).parameters[0] for end in (False, True))
    between = (stages - 2) * (8 // stages) * model.layer_parameters
    assert first + between + last == model.parameters + 512 * 64


def test_activations_of_a_layer_are_korthikantis_less_dropout_and_scores(case_on):
    """34sbh bytes with dropout; without its masks and with fused attention 32sbh and row sums remain."""
    s, h = 256, 512
    model = Model(layers=3, hidden=h, heads=8, vocab=1024, sequence=s)
    held = one(case_on(model=model), microbatch=4)["activations"]
    assert held == pytest.approx(3 * 4 * (32 * s * h + 4 * s * 8))


def test_every_stage_but_the_last_holds_what_is_in_flight(case_on):
    """A quarter more than a microbatch a stage; the last goes straight on to backward."""
    alone = one(case_on(), x=1)["activations"]
    case = case_on(training=Training(global_batch=64))
    assert one(case, pipeline=4)["activations"] == pytest.approx(5 * alone / 4)
    assert one(case, pipeline=4, in_flight=4)["activations"] == pytest.approx(4 * alone / 4)
    short = case_on(training=Training(global_batch=2))
    assert one(short, pipeline=4)["activations"] == pytest.approx(2 * alone / 4)


def test_recompute_keeps_the_input_of_each_layer(case_on):
    none, full = (one(case_on(), microbatch=4, recompute=r)["activations"] for r in ("none", "full"))
    layer = none / 8
    assert full == pytest.approx(8 * 4 * 256 * 512 * 2 + layer)


@pytest.mark.parametrize("axis", ["x", "y", "z", "data", "pipeline"])
def test_no_axis_costs_memory_for_state(case_on, axis):
    case = case_on(nodes=2)
    assert sum(one(case, **{axis: 8})[n] for n in STATE) <= sum(one(case)[n] for n in STATE)


def test_device_is_reserved_is_allocated_plus_what_stands_between(case_on):
    case = case_on(nodes=4)
    tree = memory_tree(memory.device_memory(case, Space(16, case.model, 64).nodes))
    reserved, framework, communicators = tree.children
    allocated, slack = reserved.children
    assert np.allclose(slack.value, 0.10 * allocated.value)
    assert np.allclose(tree.value, reserved.value + framework.value + communicators.value)
    assert [leaf.name for leaf in tree.leaves()] == list(memory.TERMS)
    assert (framework.value == 2**30).all()


@pytest.mark.parametrize(("spare", "verdict"), [(1.001, True), (0.999, False)])
def test_fit_leaves_a_margin(case_on, perlmutter, spare, verdict):
    case, c = case_on(), Candidates.of(Decomposition())
    assert memory.budget(case) == pytest.approx(0.95 * 40 * 2**30)
    needed = float(memory.total(memory.device_memory(case, c))[0])
    node = perlmutter.nodes["gpu40"]
    device = node.device.model_copy(update={"memory": str(int(needed / 0.95 * spare))})
    tight = case_on(node=node.model_copy(update={"device": device}))
    assert memory.fits(tight, c).tolist() == [verdict]


def test_zero_shares_optimizer_state_over_data_and_nothing_else(case_on):
    case = case_on(nodes=2)
    replicated, shared = one(case, data=8), one(case, data=8, zero=1)
    assert shared.pop("optimizer state") == pytest.approx(replicated.pop("optimizer state") / 8)
    assert shared.pop("allocator slack") <= replicated.pop("allocator slack")
    assert shared == replicated


def test_recomputation_keeps_less_the_more_it_repeats(case_on):
    case = case_on(model=Model(layers=64, hidden=512, heads=8, vocab=1024, sequence=256))
    ways = [
        {},
        {"recompute": "selective"},
        {"recompute": "full"},
        {"recompute": "full", "recompute_every": 2},
    ]
    held = [one(case, microbatch=4, **way)["activations"] for way in ways]
    assert held == sorted(held, reverse=True)
    assert held[1] == pytest.approx(64 * 4 * 256 * 512 * 12 * 2)  # 16h elements less the activation's 4h


def test_more_microbatches_in_flight_are_held(case_on):
    case = case_on(training=Training(global_batch=64))
    plain, twice = one(case, pipeline=4, in_flight=4), one(case, pipeline=4, in_flight=8)
    assert twice["activations"] == pytest.approx(2 * plain["activations"])
    assert one(case, pipeline=4, interleave=2)["activations"] == pytest.approx(twice["activations"])
