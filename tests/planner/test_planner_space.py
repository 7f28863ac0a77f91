import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdl.planner.choices import Space
from hpcdl.planner.divisors import divisors, factorisations
from hpcdl.planner.space import Candidates
from hpcdl.spec.decomposition import AXES, Decomposition, violations
from hpcdl.spec.model import Model

MODEL = Model(layers=6, hidden=192, heads=6, vocab=256, sequence=128)
SHAPES = st.builds(
    lambda layers, heads, size, kv, vocab: Model(
        family="llama", layers=layers, hidden=heads * kv * 2 * size, heads=heads * kv, kv_heads=kv, vocab=vocab,
        sequence=16,
    ),
    st.integers(1, 12), st.integers(1, 4), st.integers(1, 9), st.integers(1, 6), st.integers(2, 300),
)  # fmt: skip


@given(st.integers(1, 720), st.integers(1, 5))
def test_factorisations_are_all_ordered_products(number, parts):
    found = factorisations(number, parts)
    assert (found.prod(axis=1) == number).all()
    assert len(np.unique(found, axis=0)) == len(found)
    expected = 1
    for prime in range(2, number + 1):
        exponent = 0
        while number % prime == 0:
            number //= prime
            exponent += 1
        expected *= math.comb(exponent + parts - 1, parts - 1)
    assert len(found) == expected


def test_divisors_are_complete_and_ascending():
    assert divisors(60) == [1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60]


@settings(max_examples=60)
@given(st.integers(1, 64), SHAPES, st.integers(1, 64))
def test_every_candidate_keeps_every_rule_and_makes_the_gpus(gpus, model, batch):
    candidates = Space(gpus, model, batch).nodes
    for position in range(len(candidates)):
        d = candidates.decomposition(position)
        assert d.ranks == gpus
        assert violations(d, model, batch) == {}


@settings(max_examples=30)
@given(st.integers(1, 16), st.integers(1, 24))
def test_nothing_that_keeps_the_rules_is_left_out(gpus, batch):
    candidates = Space(gpus, MODEL, batch).nodes
    found = {str(candidates.decomposition(position)) for position in range(len(candidates))}
    for grid in factorisations(gpus, len(AXES)):
        d = Decomposition(**dict(zip(AXES, map(int, grid), strict=True)))
        assert (str(d) in found) == (not violations(d, MODEL, batch))


def test_each_grid_that_breaks_a_rule_counts_once():
    space = Space(8, MODEL, 18)
    grids = factorisations(8, len(AXES))
    broken = [
        bool(violations(Decomposition(**dict(zip(AXES, map(int, grid), strict=True))), MODEL, 18))
        for grid in grids
    ]
    assert (len(space.grids), sum(space.refused.values())) == (broken.count(False), broken.count(True))
    assert space.refused["global_batch"] > 0


def test_a_prime_number_of_gpus_has_five_grids():
    assert len(factorisations(7, 5)) == 5
    assert {str(Space(7, MODEL, 7).nodes.decomposition(0))} == {"data 7"}


def test_no_candidate_is_an_empty_list():
    assert len(Space(11, MODEL, 8).nodes) == 0


@pytest.mark.parametrize(
    "held",
    [
        {"recompute": "none"},
        {"recompute": "full"},
        {"offload": "optimizer"},
        {"offload": "parameters", "recompute": "full", "offload_activations": True},
    ],
    ids=str,
)
def test_one_decomposition_survives_the_way_through_arrays(held):
    d = Decomposition(data=2, pipeline=3, x=4, y=5, z=6, microbatch=7, **held)
    candidates = Candidates.of(d)
    assert candidates.decomposition(0) == d
    assert candidates.batch_shards[0] == d.batch_shards
    assert [int(candidates.inner(axis)[0]) for axis in AXES] == [1, 4, 20, 120, 240]
