import numpy as np
import pytest

from hpcdl.planner import compute, memory
from hpcdl.planner.choices import Space
from hpcdl.planner.estimate import FORMULAS, memory_tree, step_tree
from hpcdl.planner.space import Candidates
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training

IDEAL = dict(
    gemm_efficiency=1.0, flash_efficiency=1.0, flash_backward_efficiency=1.0, memory_efficiency=1.0,
    processors=0, products="", kernel_launch_s=0.0, host_floor_s=0.0,
    step_overhead_s=0.0, collective_latency_s=0.0, hop_latency_s=0.0, network_latency_s=0.0,
)  # fmt: skip
BIG = Model(layers=4, hidden=8192, heads=64, vocab=32000, sequence=4096)


def step(case, **degrees):
    tree = step_tree(case, Candidates.of(Decomposition(**degrees)))
    return float(tree.value[0]), {leaf.name: float(leaf.value[0]) for leaf in tree.leaves()}


@pytest.mark.parametrize("gpus", [1, 6, 8, 48])
def test_every_branch_is_the_sum_of_its_leaves_and_none_is_negative(case_on, gpus):
    case = case_on(nodes=gpus, ranks_per_node=1)
    candidates = Space(gpus, case.model, 96).nodes
    for tree in (
        step_tree(case, candidates, drive=False),
        memory_tree(memory.device_memory(case, candidates)),
    ):
        leaves = list(tree.leaves())
        assert np.allclose(tree.value, sum(leaf.value for leaf in leaves))
        assert all((leaf.value >= -1e-12).all() for leaf in leaves)
        assert all(leaf.name in FORMULAS for leaf in leaves)


def test_compute_at_peak_is_the_models_flops(case_on):
    """Products alone: 6·P per token with the head, and attention's half square at 3.5 products for 3."""
    case = case_on(model=BIG, training=Training(global_batch=4), ranks_per_node=1, **IDEAL)
    _, parts = step(case, microbatch=4)
    attention = 4 * 4096**2 * 8192 / 2
    products = BIG.layer_forward_flops - 2 * attention
    # Forward 10 of the stream, 10 of the widths between; backward 16 and 14, and the gradients of biases 9.
    streams = 4 * (10 + 10 + 16 + 14 + 9) * 4096 * 8192 * 2 / 1555e9
    expected = 4 * 4 * (3 * products + 3.5 * attention) / 312e12 + 4 * streams
    assert parts["forward"] + parts["backward"] == pytest.approx(expected, rel=1e-6)


def test_recompute_adds_one_forward_with_its_gathers(case_on):
    case = case_on()
    _, kept = step(case, z=4)
    _, again = step(case, z=4, recompute="full")
    assert kept["recompute"] == 0
    assert again["recompute"] > kept["forward"]
    assert again["weights z"] == kept["weights z"]


def test_small_layers_wait_for_the_host(case_on):
    """A layer's forward takes at least the floor, its backward 1.3 of it."""
    _, parts = step(case_on(ranks_per_node=1), microbatch=1)
    floor = 64 * 8 * 1.02e-3 * 2.3
    assert parts["forward"] + parts["backward"] + parts["host launches"] == pytest.approx(floor)


def test_uneven_layers_slow_the_first_stages(case_on):
    even, uneven = (
        step(case_on(model=Model(layers=n, hidden=512, heads=8, vocab=256, sequence=256)), pipeline=4)[0]
        for n in (8, 9)
    )
    assert uneven > 1.3 * even


def test_reduction_hides_behind_the_last_backward_but_for_a_bucket(case_on):
    quick = step(case_on(nodes=2, model=BIG), data=8)[1]["gradient reduction"]
    slow = step(case_on(nodes=2, model=BIG, overlap=0.0), data=8)[1]["gradient reduction"]
    assert 0 < quick < slow


def test_the_bubble_is_what_the_pipeline_adds_to_its_busiest_stage(case_on):
    _, parts = step(case_on(training=Training(global_batch=16)), pipeline=4)
    busy = sum(parts[name] for name in ("forward", "backward", "host launches", "head and loss"))
    assert parts["pipeline bubble"] == pytest.approx(3 / 16 * busy, rel=0.05)


def test_memory_bound_products_take_the_time_of_their_bytes(case_on):
    """One token: every weight is read once for two FLOPs."""
    model = Model(layers=1, hidden=8192, heads=64, vocab=256, sequence=1)
    work = compute.layer(case_on(model=model, **IDEAL), Candidates.of(Decomposition()))
    assert work.forward[0] == pytest.approx(2 * 12 * 8192**2 / 1555e9, rel=0.01)


def test_interleaving_and_deferring_shorten_the_bubble(case_on):
    """By the engine's own machine on a clock; see docs/design/005."""
    model = Model(layers=16, hidden=8192, heads=64, vocab=1024, sequence=1024)
    case = case_on(nodes=2, model=model, training=Training(global_batch=16))

    def bubble(**changes):
        tree = step_tree(case, Candidates.of(Decomposition(pipeline=4, **changes)))
        return next(float(term.value[0]) for term in tree.leaves() if term.name == "pipeline bubble")

    plain = bubble()
    assert bubble(interleave=2) < 0.75 * plain
    assert bubble(defer_weights=True) < plain


def test_zero_trades_an_all_reduce_for_a_scatter_and_a_gather(case_on):
    case = case_on(nodes=2)
    plain, zero = (
        {term.name: float(term.value[0]) for term in step_tree(case, Candidates.of(d)).leaves()}
        for d in (Decomposition(data=8), Decomposition(data=8, zero=1))
    )
    assert plain["parameter gather"] == 0 < zero["parameter gather"]
    assert zero["gradient reduction"] < plain["gradient reduction"]
    assert zero["optimizer"] == pytest.approx(plain["optimizer"] / 8)
