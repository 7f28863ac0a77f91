"""Stages share the layers so that the busiest has as little as can be."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.spec.model import Model
from hpcdl.spec.partition import cut as evenly
from hpcdl.spec.partition import stage_layers

SHAPES = {
    "small vocabulary": dict(family="gpt", hidden=64, heads=4, vocab=256, sequence=64),
    "large vocabulary": dict(family="llama", hidden=64, heads=4, vocab=4096, sequence=64),
}


def cut(model, stages):
    return [stage_layers(model, stages, stage) for stage in range(stages)]


def busiest(model, counts):
    head = model.head_forward_flops / model.layer_forward_flops
    return max(*counts[:-1], counts[-1] + head) if counts[:-1] else counts[-1] + head


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@given(layers=st.integers(1, 60), data=st.data())
def test_every_layer_stands_on_one_stage_and_no_stage_is_empty(shape, layers, data):
    model = Model(layers=layers, **shape)
    ranges = cut(model, data.draw(st.integers(1, layers)))
    assert [layer for one in ranges for layer in one] == list(range(layers))
    assert all(ranges)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@given(layers=st.integers(2, 14), data=st.data())
def test_no_other_cut_has_a_busiest_stage_that_does_less(shape, layers, data):
    model = Model(layers=layers, **shape)
    stages = data.draw(st.integers(2, min(layers, 5)))
    mine = busiest(model, [len(one) for one in cut(model, stages)])

    def every_cut(left, parts):
        if parts == 1:
            yield (left,)
            return
        for first in range(1, left - parts + 2):
            yield from ((first, *rest) for rest in every_cut(left - first, parts - 1))

    assert mine == pytest.approx(min(busiest(model, counts) for counts in every_cut(layers, stages)))


def test_a_large_head_leaves_the_last_stage_fewer_layers():
    model = Model(layers=16, **SHAPES["large vocabulary"])
    counts = [len(one) for one in cut(model, 4)]
    assert counts == [5, 5, 5, 1]


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ValueError, match="3 layers cannot be cut into 4 stages"):
        stage_layers(Model(layers=3, **SHAPES["small vocabulary"]), 4, 0)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.data())
def test_costs_are_cut_as_evenly_as_any_cut(costs, data):
    stages = data.draw(st.integers(1, len(costs)))

    def unevenness(ends):
        bounds = [0, *ends, len(costs)]
        return sum(sum(costs[a:b]) ** 2 for a, b in pairwise(bounds))

    ranges = evenly(costs, stages)
    assert [i for one in ranges for i in one] == list(range(len(costs)))
    assert len(ranges) == stages
    assert all(ranges)
    least = min(unevenness(ends) for ends in combinations(range(1, len(costs)), stages - 1))
    assert unevenness([one.start for one in ranges[1:]]) == least
