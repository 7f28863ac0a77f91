import numpy as np
import pytest

from hpcdl.planner import comm
from hpcdl.planner.choices import Space
from hpcdl.planner.fabric import Fabric
from hpcdl.planner.space import Candidates
from hpcdl.sites.node import Device, Links, NodeType
from hpcdl.sites.profile import default_profile
from hpcdl.spec.decomposition import AXES, Decomposition
from hpcdl.spec.model import Model

# Frontier as AxoNN used it: eight devices a node, four 25 GB/s adapters of which they reached 40 GB/s.
FRONTIER = NodeType(
    device=Device(
        kind="gcd", model="AMD MI250X GCD", memory="64GiB", memory_bandwidth=1600, peak_tflops={"bf16": 191.5}
    ),
    devices=8, cores=64, host_memory="512GiB", links=Links(intra_node=350, nics=4, nic_bandwidth=25),
)  # fmt: skip

NO_LATENCY = dict(collective_latency_s=0.0, hop_latency_s=0.0, network_latency_s=0.0)


def fabric(case, **degrees):
    return Fabric(case, Candidates.of(Decomposition(**degrees)))


def rate(case, axis, **degrees):
    return fabric(case, **degrees).bandwidth(axis)[0] / 1e9


@pytest.mark.parametrize(("inner", "expected"), [(1, 80), (2, 40), (4, 20), (8, 20)])
def test_bandwidth_across_perlmutter_nodes_is_axonns_table(case_on, inner, expected):
    """AxoNN's comm_model.py (branch gordon-bell-perlmutter): 80 GB/s a node over min(4, P) rings."""
    assert rate(case_on(nodes=64), "y", x=inner, y=256 // inner) == pytest.approx(expected)


@pytest.mark.parametrize(("inner", "expected"), [(1, 40), (2, 20), (4, 10), (8, 5)])
def test_bandwidth_across_frontier_nodes_is_axonns_table(case_on, inner, expected):
    case = case_on(nodes=16, ranks_per_node=8, node=FRONTIER)
    assert default_profile(FRONTIER.device).inter_efficiency == case.profile.inter_efficiency
    assert rate(case, "z", x=inner, z=128 // inner) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("axis", "degrees", "measured"),
    [("x", {"x": 2}, 76), ("x", {"x": 4}, 225), ("y", {"x": 2, "y": 2}, 76)],
)
def test_bandwidth_inside_a_perlmutter_node_is_axonns_measured_table(case_on, axis, degrees, measured):
    """Of four directly linked devices two reach a third of what all four do: 76 against 225 GB/s."""
    data = 4 // int(np.prod(list(degrees.values())))
    assert rate(case_on(), axis, data=data, **degrees) == pytest.approx(measured, rel=0.02)


def test_a_switch_gives_every_group_the_whole_link(case_on):
    case = case_on(ranks_per_node=8, node=FRONTIER)
    assert rate(case, "x", x=2, y=4) == rate(case, "y", x=2, y=4) == pytest.approx(350 * 0.76)


def test_a_group_that_does_not_nest_in_the_node_crosses_it(case_on):
    """Four ranks to a node, groups of three: one of them lies on two nodes."""
    assert rate(case_on(nodes=3), "x", x=3, y=4) == pytest.approx(80)


def layer(f):
    """Seconds of one layer's collectives by tensor axis, whatever hides them."""
    found = {"x": 0.0, "y": 2 * comm.moments(f), "z": 0.0}
    for linear in comm.linears(f):
        found[linear.inner_axis] += linear.forward
        found[linear.output_axis] += linear.backward
        found["z"] += 3 * linear.gather
    return found


def test_layer_traffic_is_equations_1_to_5_of_axonn(case_on):
    """Without latency; k inputs, n outputs, m tokens; transposed layers swap x and y."""
    case = case_on(nodes=16, **NO_LATENCY)
    x, y, z = 4, 4, 4  # each group of y and z has one member a node, so two levels are one
    f = fabric(case, x=x, y=y, z=z, microbatch=2)
    m, h, e = 2 * 256, 512, 2
    beta = {axis: f.bandwidth(axis)[0] for axis in "xyz"}
    shapes = [(h, 3 * h), (h, h), (h, 4 * h), (4 * h, h)]  # (k, n)
    expected = {"x": 0.0, "y": 0.0, "z": 0.0}
    for position, (k, n) in enumerate(shapes):
        gx, gy, bx, by = (x, y, "x", "y") if position % 2 == 0 else (y, x, "y", "x")
        expected["z"] += 3 * (z - 1) / z * k * n / (gx * gy) * e / beta["z"]
        expected[by] += 2 * (gy - 1) / gy * m * n / gx * e / beta[by]
        expected[bx] += 2 * (gx - 1) / gx * m * k / gy * e / beta[bx]
    expected["y"] += 2 * 2 * 2 * (y - 1) / y * m * 8 / beta["y"]  # the norms' moments
    for axis, seconds in layer(f).items():
        assert seconds[0] == pytest.approx(expected[axis])


def test_gradient_reduction_is_equation_6_of_axonn(case_on):
    f = fabric(case_on(nodes=8, **NO_LATENCY), x=4, data=8)
    whole, last = comm.gradient_reduction(f, np.array([1e9]))
    assert whole[0] == pytest.approx(2 * 7 / 8 * 4e9 / 20e9)
    assert last[0] == pytest.approx(whole[0] / np.ceil(4e9 / (25 * 2**20)))


def test_an_axis_of_one_costs_nothing(case_on):
    f = fabric(case_on(ranks_per_node=1))
    parts = [*layer(f).values(), comm.loss(f), comm.hop(f), comm.tied_embedding(f)]
    parts += [each.total for each in (*comm.embedding(f).values(), comm.context(f), comm.experts(f))]
    parts += [*comm.shards(f, comm.layer_elements(f)), *comm.gradient_reduction(f, np.array([1e6]))]
    assert all(seconds[0] == 0 for seconds in parts)
    assert f.world() == 0


@pytest.mark.parametrize("gpus", [8, 24, 64])
def test_a_faster_network_slows_nothing(case_on, gpus):
    model = Model(layers=4, hidden=384, heads=12, vocab=768, sequence=64)
    candidates = Space(gpus, model, 48).nodes
    times = []
    for efficiency in (0.4, 0.8):
        f = Fabric(case_on(nodes=gpus // 4, model=model, inter_efficiency=efficiency), candidates)
        times.append(sum(layer(f).values()) + comm.hop(f) + comm.gradient_reduction(f, np.array([1e8]))[0])
    assert (times[1] <= times[0]).all()


def test_every_axis_has_a_finite_rate_for_every_candidate(case_on):
    f = Fabric(case_on(nodes=9, ranks_per_node=4), Space(36, Model(preset="gpt2", vocab=50304), 72).nodes)
    for axis in AXES:
        assert np.isfinite(f.bandwidth(axis)).all()
        assert (f.bandwidth(axis) > 0).all()
