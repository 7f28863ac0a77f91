import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdl.errors import InfeasibleError
from hpcdl.planner import memory, offload
from hpcdl.planner.estimate import step_tree
from hpcdl.planner.explain import explain
from hpcdl.planner.plan import plan
from hpcdl.planner.rank import order
from hpcdl.planner.space import Candidates, search_space
from hpcdl.sites.detect import describe
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model
from hpcdl.spec.training import Pruning, Training

MODEL = Model(layers=8, hidden=2048, heads=16, vocab=32000, sequence=1024)


def one(case, **d):
    terms = memory.device_memory(case, Candidates.of(Decomposition(**d)))
    return {name: float(value[0]) for name, value in terms.items()}


def on_host(case, **d):
    return float(memory.host_memory(case, Candidates.of(Decomposition(**d)))[0])


def seconds(case, **d):
    tree = step_tree(case, Candidates.of(Decomposition(**d)))
    return {leaf.name: float(leaf.value[0]) for leaf in tree.leaves()}


@pytest.fixture(scope="session")
def small_memory(perlmutter):
    """A Perlmutter node whose devices have so much memory."""

    def make(size, **node):
        gpu = perlmutter.nodes["gpu40"]
        device = gpu.device.model_copy(update={"memory": size})
        return gpu.model_copy(update={"device": device, **node})

    return make


@pytest.fixture(scope="session")
def site_with(perlmutter, small_memory):
    def make(size, **node):
        return perlmutter.model_copy(
            update={"nodes": {**perlmutter.nodes, "gpu40": small_memory(size, **node)}}
        )

    return make


@pytest.mark.parametrize(("precision", "weight"), [("fp32", 4), ("bf16", 2)])
def test_offloaded_state_leaves_weights_gradients_and_a_bucket(case_on, precision, weight):
    case = case_on(model=MODEL, training=Training(precision=precision))
    held = one(case, offload="optimizer")
    assert held["weights"] == held["gradients"] == pytest.approx(weight * MODEL.parameters)
    assert held["optimizer state"] == 0
    assert held["update staging"] == 4 * 6.25 * 2**20
    assert on_host(case, offload="optimizer") == pytest.approx(12 * MODEL.parameters)


def test_a_bucket_is_never_staged_larger_than_what_is_trained(case_on):
    case = case_on(model=MODEL, training=Training(bucket_mib=1e6))
    assert one(case, offload="optimizer")["update staging"] == pytest.approx(16 * MODEL.parameters)


def test_zero_shares_what_lies_on_the_host(case_on):
    case = case_on(model=MODEL, nodes=2)
    whole, shared = (on_host(case, data=8, zero=zero, offload="optimizer") for zero in (0, 1))
    assert shared == pytest.approx(whole / 8)


@pytest.mark.parametrize(("precision", "weight"), [("fp32", 4), ("bf16", 2)])
def test_offloaded_parameters_leave_two_matrices_and_the_vectors(case_on, precision, weight):
    """16 bytes a parameter of matrices are on the host: in fp32 they are their own main copy there."""
    model = Model(layers=64, hidden=2048, heads=16, vocab=512, sequence=1024)
    case = case_on(model=model, training=Training(precision=precision))
    matrices = 64 * 12 * 2048**2 + 512 * 2048
    vectors = model.parameters - matrices
    held = one(case, offload="parameters")
    assert held["weights"] == pytest.approx(weight * (8 * 2048**2 + vectors))
    assert held["gradients"] == pytest.approx(weight * vectors)
    assert held["update staging"] == 4 * 6.25 * 2**20
    assert on_host(case, offload="parameters") == pytest.approx(16 * matrices + 12 * vectors)


def test_an_embedding_in_use_is_larger_than_two_matrices_of_a_layer(case_on):
    model = Model(layers=2, hidden=256, heads=4, vocab=32000, sequence=128)
    vectors = model.parameters - 2 * 12 * 256**2 - 32000 * 256
    held = one(case_on(model=model), offload="parameters")
    assert held["weights"] == pytest.approx(2 * (32000 * 256 + 3 * 256**2 + vectors))


def test_what_is_on_the_host_and_the_device_is_all_that_was_on_the_device(case_on):
    """Apart from fp32 gradients, which are the model's type then, and the bucket."""
    case = case_on(model=MODEL)
    plain, lean = one(case), one(case, offload="optimizer")
    held = {name: plain[name] - lean[name] for name in ("weights", "gradients", "optimizer state")}
    assert sum(held.values()) == pytest.approx(on_host(case, offload="optimizer") + 2 * MODEL.parameters)


def test_offloaded_activations_leave_two_boundaries(case_on):
    case = case_on(model=MODEL)
    full = dict(recompute="full", microbatch=4)
    boundary = 4 * 1024 * 2048 * 2
    kept, gone = (one(case, **full, offload_activations=away)["activations"] for away in (False, True))
    assert kept - gone == pytest.approx((8 - 2) * boundary)
    assert on_host(case, **full, offload_activations=True) == pytest.approx(8 * boundary)
    assert on_host(case, **full) == 0


def test_pruned_state_is_twenty_bytes_of_what_is_kept_and_two_of_the_rest(case_on):
    pruned = case_on(model=MODEL, training=Training(pruning=Pruning(sparsity=0.75)))
    matrices = 8 * 12 * 2048**2
    others = MODEL.parameters - matrices
    held = one(pruned)
    assert held["weights"] == pytest.approx(2 * (MODEL.parameters + matrices / 4))
    assert held["gradients"] == pytest.approx(2 * (others + matrices / 4))
    assert held["optimizer state"] == pytest.approx(12 * (others + matrices / 4))
    assert held["sparse index"] == pytest.approx(matrices)
    assert held["update staging"] == 6.25 * 2**20


@pytest.mark.parametrize(
    "late", [{"begin": 10}, {"schedule": "cubic", "end": 20}, {"schedule": "early-bird"}], ids=str
)
def test_what_is_dense_at_first_must_fit_dense(case_on, late):
    """The index is not there yet; the note says that both were judged."""
    dense, pruned = (
        case_on(model=MODEL),
        case_on(model=MODEL, training=Training(pruning=Pruning(sparsity=0.9, **late))),
    )
    assert one(pruned) == one(dense)


def test_names_decide_what_is_pruned(case_on):
    def index(*exclude):
        pruning = Pruning(sparsity=0.5, exclude=exclude)
        return one(case_on(model=MODEL, training=Training(pruning=pruning)))["sparse index"] / 2

    h2 = 2048**2
    assert index("embedding.*", "head.*", "*.attention.*") == pytest.approx(8 * 8 * h2)
    assert index("embedding.*", "layers.0.*") == pytest.approx(7 * 12 * h2)
    assert index() == pytest.approx(8 * 12 * h2 + 32000 * 2048)


def test_the_update_is_made_where_it_is_faster_or_where_it_is_asked_for(case_on, perlmutter):
    def update(step, host):
        links = perlmutter.nodes["gpu40"].links.model_copy(update={"host": host})
        node = perlmutter.nodes["gpu40"].model_copy(update={"links": links})
        case = case_on(model=MODEL, training=Training(offload_step=step), node=node)
        return seconds(case, offload="optimizer")

    slow, fast = 2.0, 400.0
    for link, better, worse in ((slow, "host", "device"), (fast, "device", "host")):
        chosen, other, auto = (update(step, link) for step in (better, worse, "auto"))
        assert auto == chosen
        assert sum(auto.values()) < sum(other.values())
    assert update("host", slow)["optimizer"] == update("device", slow)["optimizer"] == 0
    beside = seconds(case_on(model=MODEL))["optimizer"]
    fetched = 12 * MODEL.parameters / (2e9 * 0.78)
    assert update("device", slow)["offloaded update"] == pytest.approx(fetched + beside / 2)
    assert update("device", 1e6)["offloaded update"] == pytest.approx(beside)
    assert update("host", slow)["offloaded update"] == pytest.approx(fetched / 3)
    streamed = 40 * MODEL.parameters / (204.8e9 * 0.6 / 4)
    assert update("host", fast)["offloaded update"] == pytest.approx(streamed)


def test_offloaded_gradients_are_summed_in_the_type_of_the_model(case_on):
    case = case_on(model=MODEL, nodes=2, collective_latency_s=0.0, overlap=0.0)
    plain, lean = (seconds(case, data=8, offload=o)["gradient reduction"] for o in ("none", "optimizer"))
    assert lean == pytest.approx(plain / 2)


def test_pruned_gradients_are_summed_as_they_are_kept(case_on):
    dense, pruned = (
        case_on(model=MODEL, nodes=2, training=Training(pruning=p), collective_latency_s=0.0, overlap=0.0)
        for p in (None, Pruning(sparsity=0.5, exclude=()))
    )
    ratio = seconds(pruned, data=8)["gradient reduction"] / seconds(dense, data=8)["gradient reduction"]
    assert ratio == pytest.approx(0.25, rel=0.01)
    assert seconds(pruned)["gradient compression"] > 0 == seconds(dense)["gradient compression"]


def test_copies_count_where_they_take_longer_than_the_layer(case_on, perlmutter):
    def copies(host, **d):
        links = perlmutter.nodes["gpu40"].links.model_copy(update={"host": host})
        node = perlmutter.nodes["gpu40"].model_copy(update={"links": links})
        return seconds(case_on(model=MODEL, node=node), **d)["host copies"]

    lots = dict(microbatch=8, recompute="full")
    assert copies(1e5, **lots, offload="parameters") == pytest.approx(0, abs=1e-3)
    slow = copies(0.5, **lots, offload="parameters")
    matrices = 8 * 12 * 2048**2 + 2 * 32000 * 2048  # embedding and head
    assert slow == pytest.approx(8 * 2 * 2 * matrices / (0.5e9 * 0.78), rel=0.1)
    assert copies(0.5, **lots, offload="optimizer") == 0
    assert copies(0.5, **lots, offload_activations=True) > 0


def test_more_of_anything_is_never_free(case_on):
    """What the search relies on: parameters cost at least what state does, activations at least nothing."""
    case = case_on(model=MODEL, nodes=2)
    plain = search_space(8, MODEL, 64).candidates
    full = plain.take(plain.full_recompute)

    def step(candidates, level, *, activations=False):
        return step_tree(case, candidates.offloading(level, activations=activations)).value

    assert (step(plain, 2) >= step(plain, 1) * (1 - 1e-12)).all()
    for level in (0, 1, 2):
        assert (step(full, level, activations=True) >= step(full, level) * (1 - 1e-12)).all()


@settings(max_examples=25)
@given(
    st.sampled_from([2, 4, 8, 12]),
    st.sampled_from(["1GiB", "2GiB", "4GiB", "16GiB", "40GiB"]),
    st.sampled_from([0.5, 4.0, 40.0]),
    st.sampled_from([0.5, 25.0]),
    st.sampled_from(["auto", "device", "host"]),
)
def test_the_search_finds_the_best_of_all_levels(case_on, small_memory, gpus, size, link, network, step):
    """Against every level for every candidate, on fast and slow links and networks."""
    node = small_memory(size)
    links = node.links.model_copy(update={"host": link, "nic_bandwidth": network})
    node = node.model_copy(update={"links": links})
    training = Training(global_batch=24, offload_step=step)
    case = case_on(nodes=gpus, ranks_per_node=1, model=MODEL, node=node, training=training)
    plain = search_space(gpus, MODEL, 24).candidates
    everything = Candidates.joined([plain.offloading(level) for level in (0, 1, 2)])
    everything = everything.take(memory.fits(case, everything))
    judged = offload.variants(case, plain)
    found = judged.candidates.take(judged.fitting)
    if not len(everything):
        assert (judged.candidates.offload_activations | ~judged.fitting).all()
        return
    assert not found.offload_activations.any()
    assert best(case, found) == pytest.approx(best(case, everything), rel=1e-9)
    assert len(found) <= len(everything)


def best(case, candidates):
    values = step_tree(case, candidates).value
    return values[order(candidates, values)[0]]


def test_nothing_is_offloaded_where_it_does_not_pay(perlmutter, experiment_of):
    found = plan(experiment_of(batch=64), perlmutter, 8)
    assert {one.decomposition.offload for one in found.candidates} == {"none"}
    assert found.without == {}


def test_nothing_is_offloaded_where_device_and_host_are_one_memory(experiment_of):
    found = plan(experiment_of(precision="fp32", layers=4), describe(4, 2**34, []), 4)
    assert {one.decomposition.offload for one in found.candidates} == {"none"}
    forced = plan(
        experiment_of(parallelism={"offload": "optimizer"}, precision="fp32"), describe(4, 2**34, []), 1
    )
    assert "device and host are one memory here: offload saves nothing" in forced.best.notes


def test_a_plan_says_what_offload_made_possible(site_with, experiment_of):
    shape = dict(layers=24, hidden=2048, heads=16, vocab=51200, sequence=1024)
    found = plan(experiment_of(batch=64, **shape), site_with("4GiB"), 16)
    d = found.best.decomposition
    left = found.without["offload"]
    assert d.offload != "none"
    assert left.fastest.decomposition.offload == "none"
    assert left.fastest.step_seconds > found.best.step_seconds
    assert found.rivals["offload"].decomposition.offload != d.offload
    text = "\n".join(explain(found))
    assert f", offload {d.offload}: " in text
    assert "without offload it would" in text
    assert f"the fastest that fits: {left.fastest.decomposition}, " in text
    assert "% slower" in text
    assert "besides  host memory: " in text
    document = json.loads(json.dumps(found.to_json()))
    assert set(document["without"]) == {"offload"}
    assert set(document["without"]["offload"]) == {"needs_gib", "fits", "shallowest", "fastest"}
    assert document["candidates"][0]["host_memory_gib"] > 0
    for candidate in found.candidates:
        assert math.fsum(candidate.memory_breakdown.values()) == pytest.approx(candidate.memory_gib)
        assert math.fsum(candidate.breakdown.values()) == pytest.approx(candidate.step_seconds)


def test_an_explicit_pipeline_says_how_deep_it_would_be_without(site_with, experiment_of):
    """As in AxoNN's paper: the scratch pad makes a shorter pipeline possible."""
    shape = dict(layers=24, hidden=2048, heads=16, vocab=51200, sequence=1024)
    asked = {"pipeline": 2, "data": 4, "offload": "optimizer", "recompute": "full", "in_flight": 2, "zero": 1}
    found = plan(experiment_of(batch=64, parallelism=asked, **shape), site_with("8GiB"), 8)
    assert found.infeasible is None
    left = found.without["offload"]
    assert not left.fits
    assert left.shallowest.decomposition.pipeline > 2
    assert (left.shallowest.decomposition.in_flight, left.shallowest.decomposition.zero) == (None, 1)
    text = "\n".join(explain(found))
    assert "without offload it would not fit: " in text
    assert f"the shortest pipeline that fits otherwise alike: {left.shallowest.decomposition}" in text


def test_an_explicit_pipeline_says_how_deep_it_would_be_unpruned(site_with, experiment_of):
    shape = dict(layers=24, hidden=2048, heads=16, vocab=51200, sequence=1024)
    experiment = experiment_of(batch=64, parallelism={"pipeline": 2, "data": 4, "recompute": "full"}, **shape)
    training = experiment.training.model_copy(update={"pruning": Pruning(sparsity=0.9)})
    found = plan(experiment.model_copy(update={"training": training}), site_with("8GiB"), 8)
    assert found.infeasible is None
    left = found.without["pruning"]
    assert not left.fits
    assert left.shallowest.decomposition.pipeline > 2
    assert left.same.memory_gib > found.best.memory_gib
    assert "without pruning it would not fit: " in "\n".join(explain(found))


def test_a_shorter_pipeline_keeps_the_rules_too(site_with, experiment_of):
    """Two chunks a rank need more than one rank, so there is no pipeline of one to compare with."""
    asked = {"pipeline": 2, "interleave": 2, "offload": "optimizer"}
    found = plan(experiment_of(batch=64, parallelism=asked), site_with("40GiB"), 2)
    assert found.without["offload"].shallowest.decomposition.pipeline == 2


def test_what_does_not_fit_hears_which_offload_would_help(site_with, experiment_of):
    shape = dict(layers=24, hidden=2048, heads=16, vocab=51200, sequence=1024)
    asked = {"pipeline": 2, "data": 4, "recompute": "full"}
    found = plan(experiment_of(batch=64, parallelism=asked, **shape), site_with("8GiB"), 8)
    assert "with parallelism.offload: optimizer it needs " in found.infeasible
    assert "GiB of host memory, and fits" in found.infeasible


def test_what_nothing_fits_hears_how_far_offload_went(site_with, experiment_of):
    with pytest.raises(InfeasibleError) as caught:
        plan(experiment_of(batch=64, preset="gpt3-175b", vocab=51200), site_with("40GiB"), 4)
    assert "\nthe leanest with offload, " in caught.value.message
    assert caught.value.message.count("GiB are there after a margin of 5%") == 2


def test_host_memory_that_does_not_suffice_is_named(site_with, experiment_of):
    asked = {"data": 4, "offload": "optimizer"}
    site = site_with("40GiB", host_memory="8GiB")
    found = plan(experiment_of(parallelism=asked, layers=24, hidden=2048, heads=16, vocab=51200), site, 4)
    assert "in host memory, but 1.9 GiB of it are there after a margin of 5%" in found.infeasible
    assert found.refused == {"memory": 1}


def test_activations_are_offloaded_when_nothing_else_fits(site_with, experiment_of):
    shape = dict(layers=64, hidden=512, heads=8, vocab=1024, sequence=65536)
    found = plan(experiment_of(batch=1, **shape), site_with("6GiB"), 1)
    assert found.best.decomposition.offload_activations
    assert found.best.decomposition.recompute == "full"
    assert "offload_activations" in explain(found)[0]


@pytest.mark.parametrize(("sparsity", "warned"), [(0.1, True), (0.24, True), (0.25, False), (0.9, False)])
def test_a_sparsity_below_the_break_even_is_warned_of_with_both_counts(
    perlmutter, experiment_of, sparsity, warned
):
    experiment = experiment_of()
    training = experiment.training.model_copy(update={"pruning": Pruning(sparsity=sparsity)})
    found = plan(experiment.model_copy(update={"training": training}), perlmutter, 4)
    assert bool(found.warnings) == warned
    assert found.to_json()["warnings"] == list(found.warnings)
    for words in found.warnings:
        assert f"training.pruning.sparsity {sparsity:g} saves little or no memory" in words
        assert "MiB a rank pruned and " in words
        assert " MiB dense" in words


def test_a_bucket_larger_than_the_parameters_is_warned_of(perlmutter, experiment_of):
    asked = {"data": 4, "offload": "optimizer"}
    experiment = experiment_of(parallelism=asked)
    assert plan(experiment, perlmutter, 4).warnings == ()
    training = experiment.training.model_copy(update={"bucket_mib": 1000.0})
    (words,) = plan(experiment.model_copy(update={"training": training}), perlmutter, 4).warnings
    assert words.startswith("training.bucket_mib 1000 is a bucket of 262144000 elements, more than the 25")
    plain = experiment.model_copy(update={"training": training, "parallelism": Decomposition(data=4)})
    assert plan(plain, perlmutter, 4).warnings == ()


def test_what_was_assumed_is_noted(case_on, perlmutter, experiment_of):
    asked = {"data": 4, "offload": "optimizer"}
    notes = plan(experiment_of(parallelism=asked), perlmutter, 4).best.notes
    assert "gradients are kept and summed in bf16, not fp32" in notes
    experiment = experiment_of(parallelism={"data": 4})
    training = experiment.training.model_copy(update={"pruning": Pruning(sparsity=0.5, begin=10)})
    notes = plan(experiment.model_copy(update={"training": training}), perlmutter, 4).best.notes
    assert any("memory must be enough for the dense steps before it" in note for note in notes)


def test_a_site_that_does_not_say_gets_the_slowest_link(case_on, perlmutter):
    node = perlmutter.nodes["gpu40"]
    bare = node.model_copy(update={"links": node.links.model_copy(update={"host": None})})
    case = case_on(node=bare)
    assert case.host_link == pytest.approx(15.75e9 * 0.78)
    one_memory = replace(case, node=bare.model_copy(update={"unified_memory": True}))
    assert one_memory.one_memory
    assert np.isclose(one_memory.host_link, one_memory.memory_rate / 2)
