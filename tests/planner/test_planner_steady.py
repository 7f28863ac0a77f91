import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdl.planner import steady
from hpcdl.planner.pipeline import simulate
from hpcdl.stage import Flow


@pytest.fixture
def impatient(monkeypatch):
    """Batches count as too long as soon as there is a shorter one to go by."""
    monkeypatch.setattr(steady, "OPERATIONS", 1)
    steady.seconds.cache_clear()
    yield
    steady.seconds.cache_clear()


@pytest.mark.parametrize(("ranks", "chunks"), [(1, 1), (2, 1), (4, 1), (4, 2), (8, 3)])
def test_a_batch_that_is_short_enough_is_driven_as_it_is(ranks, chunks):
    flow = Flow(ranks, 24, chunks)
    one = (1.0,) * (ranks * chunks)
    assert steady.seconds(flow, one, one, one, 0.1) == simulate(flow, one, one, one, 0.1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("defer", [False, True])
@pytest.mark.parametrize(("ranks", "chunks"), [(2, 1), (4, 1), (8, 1), (4, 2), (8, 2)])
def test_equal_stages_repeat_themselves_exactly(ranks, chunks, defer):
    flow = Flow(ranks, 16 * ranks, chunks, None, defer)
    forward, backward = ((seconds,) * (ranks * chunks) for seconds in (1.0, 2.0))
    found = steady.seconds(flow, forward, backward, forward, 0.0)
    assert found == pytest.approx(simulate(flow, forward, backward, forward), rel=1e-9)


@settings(max_examples=60)
@given(
    st.integers(2, 8), st.integers(1, 3), st.integers(12, 20), st.booleans(), st.floats(0.8, 1.3),
    st.floats(1.5, 3.5), st.sampled_from([0.0, 0.02, 0.1]),
)  # fmt: skip
def test_uneven_ends_are_carried_on_within_8_percent(ranks, chunks, times, defer, last, ratio, hop):
    stages = ranks * chunks
    flow = Flow(ranks, times * ranks, chunks, None, defer)
    forward = (*(1 / chunks,) * (stages - 1), last / chunks)
    backward, weight = (tuple(share * one for one in forward) for share in (ratio, 0.9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steady, "OPERATIONS", 2 * stages * 8 * ranks)
        found = steady.seconds.__wrapped__(flow, forward, backward, weight, hop)
    assert found == pytest.approx(simulate(flow, forward, backward, weight, hop), rel=0.08)


def test_the_work_is_bounded_by_the_pipeline_and_not_by_the_batch():
    sizes = [steady.operations(Flow(64, microbatches)) for microbatches in (512, 10**4, 10**9)]
    assert sizes[0] == 2 * 64 * 512
    assert sizes[1] == sizes[2] <= 1.5 * steady.OPERATIONS
