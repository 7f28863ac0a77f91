import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.planner.pipeline import Pipeline, simulate

SECONDS = st.floats(0.1, 10)


def closed(forward, backward, microbatches, hop=0.0):
    stages = [f + b for f, b in zip(forward, backward, strict=True)]
    one = Pipeline(
        stages=np.array([len(stages)]),
        microbatches=np.array([microbatches]),
        busiest=np.array([max(stages)]),
        total=np.array([sum(stages)]),
        hop=np.array([hop]),
    )
    return float(one.seconds[0])


@given(SECONDS, st.sampled_from([1.0, 2.0, 3.0]), st.integers(1, 8), st.integers(1, 24))
def test_closed_form_is_exact_for_equal_stages_and_few_of_them_or_few_microbatches(
    f, ratio, stages, microbatches
):
    """It is 1F1B's (m - 1 + p)·T there."""
    if stages > 4 and microbatches > stages:
        microbatches = stages
    forward, backward = [f] * stages, [ratio * f] * stages
    expected = (microbatches - 1 + stages) * (1 + ratio) * f
    assert simulate(forward, backward, microbatches) == pytest.approx(expected)
    assert closed(forward, backward, microbatches) == pytest.approx(expected)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=8), st.floats(0, 1))
def test_closed_form_is_exact_for_one_microbatch(stages, hop):
    forward, backward = zip(*stages, strict=True)
    assert simulate(forward, backward, 1, hop) == pytest.approx(closed(forward, backward, 1, hop))


@given(SECONDS, SECONDS, st.integers(1, 40))
def test_closed_form_is_exact_for_one_stage(f, b, microbatches):
    assert simulate([f], [b], microbatches) == pytest.approx(closed([f], [b], microbatches))


@given(
    st.lists(st.tuples(st.floats(1, 1.5), st.floats(2, 3)), min_size=1, max_size=8),
    st.integers(1, 32),
    st.floats(0, 0.3),
)
def test_closed_form_stays_within_a_quarter_of_the_state_machine(stages, microbatches, hop):
    forward, backward = zip(*stages, strict=True)
    exact = simulate(forward, backward, microbatches, hop)
    assert 0.75 * exact <= closed(forward, backward, microbatches, hop) <= 1.25 * exact


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=6), st.integers(1, 16))
def test_no_pipeline_beats_its_busiest_stage(stages, microbatches):
    forward, backward = zip(*stages, strict=True)
    busiest = max(f + b for f, b in stages)
    assert simulate(forward, backward, microbatches) >= microbatches * busiest * (1 - 1e-9)


def test_crowded_ranks_take_turns_and_bubbles_are_free():
    """Two stages on one core: the time is all the work, whatever the number of microbatches."""
    for microbatches in (1, 4):
        one = Pipeline(*(np.array([value]) for value in (2, microbatches, 3.0, 6.0, 0.0)))
        assert one.crowded_seconds(2.0)[0] == pytest.approx(6.0 * microbatches)
