"""Collectives by algorithm, and the bandwidths of nested groups."""

from dataclasses import replace

import numpy as np
import pytest

from hpcdl.planner.engines import find_engine
from hpcdl.planner.fabric import REPLICAS, Fabric
from hpcdl.planner.space import Candidates
from hpcdl.sites.node import Device, Links, NodeType
from hpcdl.spec.decomposition import Decomposition

NO_LATENCY = dict(collective_latency_s=0.0, hop_latency_s=0.0, network_latency_s=0.0)
DGX = NodeType(
    device=Device(
        kind="gpu", model="NVIDIA A100-SXM4-80GB", memory="80GiB", memory_bandwidth=2039, peak_tflops={"bf16": 312}
    ),
    devices=8, cores=128, host_memory="1TB", links=Links(intra_node=300, nics=8, nic_bandwidth=25),
)  # fmt: skip

# vTrain's nccl-tests on a DGX A100, all-reduces out of place: ranks, bytes, µs
# (VIA-Research/vTrain, trace/a100/AR_GPU*_1M_1024M_LUT).
NCCL = [
    (2, 1 << 20, 44.21), (4, 1 << 20, 51.4), (8, 1 << 20, 92.79),
    (2, 16 << 20, 131.9), (4, 16 << 20, 179.6), (8, 16 << 20, 232.4),
    (2, 1 << 30, 5442.8), (4, 1 << 30, 7259.4), (8, 1 << 30, 8193.0),
]  # fmt: skip


def fabric(case, **degrees):
    return Fabric(case, Candidates.of(Decomposition(**degrees)))


@pytest.mark.parametrize(("ranks", "size", "microseconds"), NCCL)
def test_all_reduces_in_a_node_are_those_of_nccl_tests(case_on, ranks, size, microseconds):
    """The start-up was fitted to the whole of these tables: 140 sizes and ranks, mean error 6.9 %."""
    f = fabric(case_on(node=DGX, ranks_per_node=8), x=ranks, data=8 // ranks)
    assert f.all_reduce(np.array([float(size)]), "x")[0] * 1e6 == pytest.approx(microseconds, rel=0.25)


def test_a_message_saturates_the_link(case_on):
    """S bytes reach β·S/(S + S_half), with S_half β times what does not depend on the size."""
    f = fabric(case_on(node=DGX, ranks_per_node=8), x=8)
    peak = f.bandwidth("x")[0] * 8 / 7
    sizes = np.array([2.0**20, 2.0**24, 2.0**28])
    half = peak * f.gather(np.array([0.0]), "x")[0]
    assert f.gather(sizes, "x") == pytest.approx(sizes / peak * (sizes + half) / sizes)


def test_doubling_between_nodes_starts_up_sooner_than_a_ring(case_on):
    """1024 nodes: ten rounds instead of 1023 hops."""
    case = case_on(nodes=1024, collective_latency_s=0.0, hop_latency_s=0.0)
    start = fabric(case, z=4096).gather(np.array([0.0]), "z")[0]
    assert start == pytest.approx(10 * case.profile.network_latency_s)


@pytest.mark.parametrize(("nodes", "levels"), [(2, True), (4, False), (64, False)])
def test_two_levels_pay_on_few_nodes(case_on, nodes, levels):
    """A node sends (N-1)/N of the bytes each way, where a flat ring sends (n-1)/n, but its links all once more."""
    f = fabric(case_on(nodes=nodes, **NO_LATENCY), data=4 * nodes)
    size, ranks = np.array([1e9]), 4 * nodes
    ring = (ranks - 1) / ranks * 1e9 / 80e9
    inside = 3 / 4 * 1e9 / f.case.intra(1, 4)
    two = inside + (nodes - 1) / nodes * 1e9 / 80e9
    assert f.gather(size, "data")[0] == pytest.approx(ring)
    assert f.all_reduce(size, "data")[0] == pytest.approx(2 * (two if levels else ring))


def test_an_all_reduce_is_a_scatter_and_a_gather_at_most(case_on):
    c = Candidates.of(*(Decomposition(x=x, data=64 // x) for x in (1, 2, 4, 8, 16, 32, 64)))
    f = Fabric(case_on(nodes=16), c)
    for size in (1e3, 1e6, 1e9):
        count_bytes = np.full(len(c), size)
        for axis in ("x", "data"):
            assert (f.all_reduce(count_bytes, axis) <= 2 * f.gather(count_bytes, axis)).all()


@pytest.mark.parametrize("axis", ["x", "y", "z", "context", "data", "pipeline"])
def test_more_bytes_and_more_members_take_longer(case_on, axis):
    by_members = []
    for degree in (1, 2, 4, 8, 16):
        f = fabric(case_on(nodes=16), **{"x": 4, axis: degree} if axis != "x" else {"x": degree})
        times = [f.all_reduce(np.array([size]), axis)[0] for size in (0.0, 1e6, 1e9)]
        assert times == sorted(times)
        by_members.append(times[1])
    # Two of four linked devices have a third of the bandwidth that all four have: the one exception.
    assert by_members == sorted(by_members) or axis == "x"


def test_an_all_to_all_shares_the_network_among_all_ranks(case_on):
    f = fabric(case_on(nodes=4, **NO_LATENCY), data=16, expert=16)
    near, away = 3 / 16 / 225e9, 12 / 16 / (80e9 / 4)
    assert f.all_to_all(np.array([1e9]), "expert")[0] == pytest.approx(1e9 * (near + away), rel=0.02)


def test_replicas_are_data_and_the_parts_of_a_sequence(case_on):
    f = fabric(case_on(nodes=8), x=2, context=4, data=4)
    assert f.size(REPLICAS)[0] == 16
    assert f.inner(REPLICAS)[0] == 2
    swapped = fabric(case_on(nodes=8), x=2, context=4, data=2, pipeline=2, order="pipeline-data")
    assert swapped.inner(REPLICAS)[0] == 4


def test_an_engine_may_number_ranks_along_y_first(case_on):
    case = replace(case_on(nodes=4), engine=find_engine("axonn"))
    f = fabric(case, x=4, y=4)
    assert (f.inner("y")[0], f.inner("x")[0]) == (1, 4)
    assert f.bandwidth("y")[0] > f.bandwidth("x")[0]


def test_one_node_needs_no_network(case_on):
    """A site file of one machine states none."""
    alone = DGX.model_copy(update={"links": Links(intra_node=300)})
    f = fabric(case_on(node=alone, ranks_per_node=8), x=2, data=4)
    assert np.isfinite(f.all_reduce(np.array([1e9]), "data")).all()
