"""All decompositions of 2, 4, 6 and 8 ranks over the five axes, each with another mix of mechanisms."""

from itertools import product

import pytest
from engine_transparency import assert_transparent, experiment

from hpcdl.planner.divisors import factorisations
from hpcdl.spec.decomposition import AXES, Decomposition
from hpcdl.spec.model import Model

BATCH = 24
SHAPES = {
    "gpt": dict(family="gpt", layers=8, hidden=48, heads=24, ffn=48, vocab=264, sequence=4),
    "llama": dict(family="llama", layers=8, hidden=96, heads=48, kv_heads=24, ffn=48, vocab=264, sequence=4),
}
OVERLAP = ("input_gradient", "weight_scatter", "weight_gather", "gradient_reduction", "optimizer")
EVERY = 23  # of all cases, one in so many is in the quick suite


def cases():
    degrees = [
        dict(zip(AXES, map(int, row), strict=True))
        for ranks in (2, 4, 6, 8)
        for row in factorisations(ranks, len(AXES))
    ]
    for number, (where, family) in enumerate(product(degrees, SHAPES)):
        tied = number // 2 % 2 == 0
        name = f"{family}, {'tied' if tied else 'untied'}, {Decomposition(**where)}"
        marks = [pytest.mark.slow] if number % EVERY else []
        yield pytest.param(family, tied, where, number, id=name, marks=marks)


def mix(number, pipeline):
    """Another combination of everything that must change nothing for every ``number``."""
    bits = [number >> place & 1 for place in range(4)]
    recompute = [
        {},
        {"recompute": "selective"},
        {"recompute": "full"},
        {"recompute": "full", "recompute_every": 2},
    ]
    return {
        "interleave": 2 if pipeline in (2, 3, 4) and bits[0] else 1,
        "defer_weights": bool(bits[1]),
        "zero": bits[2],
        "microbatch": 2 if bits[3] else 1,
        **recompute[number // 3 % 4],
    }


@pytest.mark.parametrize(("family", "tied", "where", "number"), [*cases()])
def test_every_decomposition_trains_the_same_model(family, tied, where, number):
    model = Model(**SHAPES[family], tied=tied)
    overlap = dict.fromkeys(OVERLAP, number % 5 > 0)
    settings = experiment(model, global_batch=BATCH, overlap=overlap)
    assert_transparent(settings, Decomposition(**where, **mix(number, where["pipeline"])), tolerance=5e-6)
