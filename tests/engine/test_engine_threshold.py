"""The threshold that ranks agree on is the one of all their weights together."""

from itertools import chain

import pytest
import torch
from engine_worlds import in_threads
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.groups import make_groups
from hpcdl.engine.sparse.threshold import Row, thresholds
from hpcdl.engine.topology import Topology
from hpcdl.spec.decomposition import Decomposition

CPU = torch.device("cpu")
WEIGHTS = st.lists(st.floats(-2, 2, width=32) | st.sampled_from([0.0, -0.0, 1e-40, 0.5]), max_size=30)


def found(ranks, rows):
    """The thresholds of ``rows``: of each the elements, how many go, and what each rank brings."""

    def work(transport):
        topology = Topology(Decomposition(data=ranks), transport.rank)
        world = make_groups(transport, topology, tied=False).world
        mine = [Row(elements, go, [torch.tensor(brought[transport.rank])]) for elements, go, brought in rows]
        return thresholds(mine, world, CPU)

    answers = in_threads(ranks, work)
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


def kth(weights, absent, go):
    everything = torch.cat([torch.tensor(weights).abs(), torch.zeros(absent)])
    return everything.kthvalue(go).values.item() if go else -1.0


@given(st.data(), st.integers(1, 3), st.integers(0, 5))
def test_it_is_the_kth_smallest_to_the_bit(data, ranks, absent):
    rows, wanted = [], []
    for _ in range(data.draw(st.integers(1, 3))):
        brought = [data.draw(WEIGHTS) for _ in range(ranks)]
        elements = sum(map(len, brought)) + absent
        go = data.draw(st.integers(0, elements))
        rows.append((elements, go, brought))
        wanted.append(kth(list(chain.from_iterable(brought)), absent, go))
    assert found(ranks, rows) == wanted


@pytest.mark.parametrize("go", [1, 1000, 99_999, 100_000])
def test_it_is_exact_among_many(go):
    weights = torch.randn(100_000, generator=torch.Generator().manual_seed(1)) * 1e-3
    ((rows, wanted),) = [([(100_000, go, [part.tolist() for part in weights.chunk(3)])], weights)]
    assert found(3, rows) == [wanted.abs().kthvalue(go).values.item()]


def test_weights_do_not_travel():
    """Whatever there is to be searched, four messages of 256 counts a row go around."""
    sizes = []

    def work(transport):
        original = transport.all_reduce

        def counted(tensor, *rest):
            sizes.append(tensor.numel())
            return original(tensor, *rest)

        transport.all_reduce = counted
        world = make_groups(transport, Topology(Decomposition(data=2), transport.rank), tied=False).world
        return thresholds([Row(20_000, 7, [torch.rand(10_000)])] * 3, world, CPU)

    in_threads(2, work)
    assert sizes == [3 * 256] * 8
