"""What runs beside computing, and what that costs."""

from dataclasses import replace

import numpy as np
import pytest
from quick import first_of

from hpcdl.planner.choices import Space
from hpcdl.planner.engines import find_engine
from hpcdl.planner.estimate import step_tree
from hpcdl.planner.overlap import beside
from hpcdl.planner.space import Candidates
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.job import Overlap
from hpcdl.spec.model import Model
from hpcdl.spec.training import Optimizer, Training

BIG = Model(layers=8, hidden=8192, heads=64, vocab=32000, sequence=4096)
NOTHING = Overlap(**dict.fromkeys(Overlap.model_fields, False))


def leaves(case, **degrees):
    tree = step_tree(case, Candidates.of(Decomposition(**degrees)))
    return {leaf.name: float(leaf.value[0]) for leaf in tree.leaves()}


def one(profile, collective, compute, *, wanted=True):
    found = beside(profile, np.array([collective]), np.array([compute]), wanted=wanted)
    return [float(value[0]) for value in found]


def test_a_short_collective_is_hidden_for_its_price(case_on):
    profile = case_on(overlap_price=0.1, beside_slowdown=1.3).profile
    exposed, price, left = one(profile, 2.0, 10.0)
    assert exposed == 0
    assert price == pytest.approx(0.1 * 2.6)
    assert left == pytest.approx(10 - 0.9 * 2.6)


def test_a_long_collective_goes_on_alone(case_on):
    profile = case_on(overlap_price=0.1, beside_slowdown=1.3).profile
    exposed, price, left = one(profile, 20.0, 9.0)
    joint = 9 / 0.9
    assert exposed == pytest.approx(20 - joint / 1.3)
    assert price == pytest.approx(joint - 9)
    assert left == pytest.approx(0)


def test_unwanted_overlap_exposes_everything(case_on):
    assert one(case_on().profile, 3.0, 10.0, wanted=False) == [3.0, 0.0, 10.0]


@pytest.mark.parametrize("collective", [0.1, 5.0, 9.0, 50.0])
@pytest.mark.parametrize("price", [0.0, 0.15, 0.4])
def test_overlap_never_takes_longer_than_one_after_the_other(case_on, collective, price):
    profile = case_on(overlap_price=price, beside_slowdown=1.9).profile
    exposed, cost, _ = one(profile, collective, 9.0)
    assert exposed + cost <= collective * (1 + 1e-9)


@pytest.mark.parametrize("name", first_of("hpcdl", "axonn", "torchtitan"))
def test_no_switch_makes_any_step_longer(case_on, name):
    """Every seventh decomposition of 64 devices, with each overlap alone and with all."""
    plain = replace(case_on(nodes=16, model=BIG), engine=find_engine(name), overlap=NOTHING)
    candidates = Space(64, BIG, 64, find_engine("any")).nodes
    candidates = candidates.take(np.arange(0, len(candidates), 7))
    without = step_tree(plain, candidates).value
    for field in Overlap.model_fields:
        only = replace(plain, overlap=NOTHING.model_copy(update={field: True}))
        assert (step_tree(only, candidates).value <= without * (1 + 1e-9)).all()
    together = step_tree(replace(plain, overlap=Overlap()), candidates).value
    assert (together <= without * (1 + 1e-9)).all()
    assert (together < 0.99 * without).any()


@pytest.mark.parametrize(
    ("field", "degrees", "leaf"),
    [
        ("input_gradient", {"x": 4}, "tensor x"),
        ("weight_gather", {"z": 16}, "weights z"),
        ("weight_scatter", {"z": 16}, "weights z"),
        ("weight_gather", {"data": 16, "zero": 3}, "weights data"),
        ("gradient_reduction", {"data": 16, "zero": 3}, "weights data"),
        ("gradient_reduction", {"data": 16}, "gradient reduction"),
    ],
)
def test_each_switch_hides_its_collective(case_on, field, degrees, leaf):
    nodes = 1 if degrees.get("x") else 4
    plain = replace(case_on(nodes=nodes, model=BIG), overlap=NOTHING, engine=find_engine("any"))
    hidden = leaves(replace(plain, overlap=NOTHING.model_copy(update={field: True})), **degrees)
    shown = leaves(plain, **degrees)
    assert hidden[leaf] < shown[leaf]
    paid = hidden["overlapped compute"] > 0 == shown["overlapped compute"]
    assert paid or leaf == "gradient reduction"  # which holds its own price


def test_deferred_products_hide_no_input_gradient(case_on):
    case = replace(case_on(model=BIG), overlap=NOTHING.model_copy(update={"input_gradient": True}))
    at_once, later = (leaves(case, x=2, pipeline=2, defer_weights=defer) for defer in (False, True))
    assert at_once["tensor x"] < later["tensor x"]


def test_an_update_starts_early_where_nothing_is_clipped(case_on):
    def updated(clip, **overlap):
        training = Training(global_batch=64, optimizer=Optimizer(clip=clip))
        case = case_on(nodes=4, model=BIG, training=training)
        return leaves(replace(case, overlap=Overlap(**overlap)), data=16)["optimizer"]

    assert updated(0.0) < updated(1.0) == updated(0.0, optimizer=False)


def test_an_engine_hides_only_what_it_can(case_on):
    case = replace(case_on(nodes=4, model=BIG), engine=find_engine("megatron"))
    assert not case.beside.gradient_reduction
    assert case.beside.weight_gather
    assert not replace(case, overlap=NOTHING).beside.weight_gather


def test_links_of_a_node_and_the_network_are_busy_by_themselves(case_on):
    """Sums over x inside nodes leave the network to the reduction over data; sums across nodes do not."""
    case = replace(case_on(nodes=16, model=BIG, overlap_price=0.0), overlap=Overlap())
    only = replace(case, overlap=NOTHING.model_copy(update={"gradient_reduction": True}))
    inside, across = dict(x=4, data=16), dict(x=8, data=8)
    assert leaves(case, **inside)["gradient reduction"] == leaves(only, **inside)["gradient reduction"]
    assert leaves(case, **across)["gradient reduction"] > leaves(only, **across)["gradient reduction"]
