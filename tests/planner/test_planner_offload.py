from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdl.planner import memory, offload
from hpcdl.planner.choices import Space
from hpcdl.planner.estimate import step_tree
from hpcdl.planner.rank import order
from hpcdl.planner.space import Candidates
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model
from hpcdl.spec.training import Pruning, Training

MODEL = Model(layers=8, hidden=2048, heads=16, vocab=32000, sequence=1024)
NO_LATENCY = dict(collective_latency_s=0.0, hop_latency_s=0.0, network_latency_s=0.0)


def one(case, **d):
    terms = memory.device_memory(case, Candidates.of(Decomposition(**d)))
    return {name: float(value[0]) for name, value in terms.items()}


def on_host(case, **d):
    return float(memory.host_memory(case, Candidates.of(Decomposition(**d)))[0])


def seconds(case, **d):
    tree = step_tree(case, Candidates.of(Decomposition(**d)))
    return {leaf.name: float(leaf.value[0]) for leaf in tree.leaves()}


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
    """It is the head too, which is fetched while the last matrix of a layer, 4h², is in use."""
    model = Model(layers=2, hidden=256, heads=4, vocab=32000, sequence=128)
    vectors = model.parameters - 2 * 12 * 256**2 - 32000 * 256
    held = one(case_on(model=model), offload="parameters")
    assert held["weights"] == pytest.approx(2 * (32000 * 256 + 4 * 256**2 + vectors))


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


@pytest.mark.parametrize("step", ["auto", "device", "host"])
def test_weights_on_the_host_are_updated_there_and_summed_on_the_device(case_on, perlmutter, step):
    links = perlmutter.nodes["gpu40"].links.model_copy(update={"host": 400.0})
    node = perlmutter.nodes["gpu40"].model_copy(update={"links": links})
    case = case_on(model=MODEL, node=node, training=Training(offload_step=step))
    streamed, moved = 40 / (204.8e9 * 0.6 / 4), 4 / (400e9 * 0.78)
    alone, summed = (seconds(case, data=n, offload="parameters")["offloaded update"] for n in (1, 4))
    assert alone == pytest.approx(streamed * MODEL.parameters)
    assert summed == pytest.approx((streamed + moved) * MODEL.parameters)


def test_one_memory_holds_what_is_offloaded_as_well(case_on, perlmutter):
    """As on a CPU: nothing is gained but the fp32 gradients, and the bucket is lost."""
    d = Candidates.of(Decomposition())
    separate = case_on(model=MODEL)
    shared = replace(separate, node=separate.node.model_copy(update={"unified_memory": True}))
    device = float(memory.total(memory.device_memory(shared, d.offloading(1)))[0])
    held = device + on_host(shared, offload="optimizer")
    assert memory.need(shared, d.offloading(1))[0] == pytest.approx(held / memory.budget(shared))
    assert memory.need(separate, d.offloading(1))[0] < 0.5 * memory.need(shared, d.offloading(1))[0]


def test_offloaded_gradients_are_summed_in_the_type_of_the_model(case_on):
    case = case_on(model=MODEL, nodes=2, overlap=0.0, **NO_LATENCY)
    plain, lean = (seconds(case, data=8, offload=o)["gradient reduction"] for o in ("none", "optimizer"))
    assert lean == pytest.approx(plain / 2)


def test_pruned_gradients_are_summed_as_they_are_kept(case_on):
    dense, pruned = (
        case_on(model=MODEL, nodes=2, training=Training(pruning=p), overlap=0.0, **NO_LATENCY)
        for p in (None, Pruning(sparsity=0.5, exclude=()))
    )
    ratio = seconds(pruned, data=8)["gradient reduction"] / seconds(dense, data=8)["gradient reduction"]
    assert ratio == pytest.approx(0.25, rel=0.01)
    assert seconds(pruned)["gradient compression"] > 0 == seconds(dense)["gradient compression"]


def test_compressing_gradients_and_expanding_weights_are_memory_traffic(case_on):
    case = case_on(model=MODEL, training=Training(global_batch=64, pruning=Pruning(sparsity=0.75)))
    found, matrices = seconds(case, microbatch=4), 8 * 12 * 2048**2
    rate = case.memory_rate
    assert found["gradient compression"] == pytest.approx(16 * matrices * (2 + 0.25 * 10) / rate)
    assert found["expansion"] == pytest.approx(matrices * (2 + 0.25 * 6) / rate)


def test_weights_and_activations_share_the_way_back(case_on, perlmutter):
    links = perlmutter.nodes["gpu40"].links.model_copy(update={"host": 0.01})
    node = perlmutter.nodes["gpu40"].model_copy(update={"links": links})
    case = case_on(model=MODEL, node=node, training=Training(global_batch=8))
    copies = {
        away: seconds(case, microbatch=8, recompute="full", offload="parameters", offload_activations=away)[
            "host copies"
        ]
        for away in (False, True)
    }
    boundaries = 8 * (8 * 1024 * 2048 * 2)
    assert copies[True] - copies[False] == pytest.approx(boundaries / (0.01e9 * 0.78))


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
    plain = Space(8, MODEL, 64).nodes
    full = plain.take(plain.full_recompute)

    def step(candidates, level, *, activations=False):
        return step_tree(case, candidates.offloading(level, activations=activations), drive=False).value

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
    plain = Space(gpus, MODEL, 24).nodes
    full = plain.take(plain.full_recompute)
    spaced = Candidates.joined([plain, *(full.having(recompute_every=apart) for apart in (2, 4, 8))])
    everything = Candidates.joined([spaced.offloading(level) for level in (0, 1, 2)])
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
    values = step_tree(case, candidates, drive=False).value
    return values[order(candidates, values)[0]]


def test_a_site_that_does_not_say_gets_the_slowest_link(case_on, perlmutter):
    node = perlmutter.nodes["gpu40"]
    bare = node.model_copy(update={"links": node.links.model_copy(update={"host": None})})
    case = case_on(node=bare)
    assert case.host_link == pytest.approx(15.75e9 * 0.78)
    one_memory = replace(case, node=bare.model_copy(update={"unified_memory": True}))
    assert one_memory.one_memory
    assert np.isclose(one_memory.host_link, one_memory.memory_rate / 2)
