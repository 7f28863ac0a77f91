"""Step records as columns: the same numbers as the records, however the file grows."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics
from hpcdl.runs.reports.columns import Columns
from hpcdl.runs.reports.thinning import POINTS, curve, thinned
from hpcdl.telemetry import StepRecord, append

STEPS = st.lists(st.tuples(st.integers(1, 12), st.floats(0, 9), st.booleans()), max_size=30)


@given(STEPS, st.integers(1, 7))
def test_columns_hold_what_the_records_hold_however_often_they_are_read(tmp_path_factory, given_steps, every):
    """Steps that are repeated take back what followed, in both."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.metrics.mkdir()
    columns = Columns(folder.rank_metrics(0))
    for place, (step, loss, evaluated) in enumerate(given_steps):
        told = loss if evaluated else None
        record = StepRecord(step, loss, 8, 0.5, 16.0, validation_loss=told, attempt=place // 4)
        append(folder.rank_metrics(0), record)
        if place % every == 0:
            assert columns.update()
    columns.update()
    assert not columns.update()
    records = metrics.steps(folder)
    assert list(columns.step) == [each.step for each in records]
    assert list(columns.attempt) == [each.attempt for each in records]
    assert list(columns.numbers["loss"]) == [each.loss for each in records]
    assert columns.validation == {
        each.step: each.validation_loss for each in records if each.validation_loss is not None
    }


def test_columns_leave_a_line_that_is_still_being_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    columns = Columns(path)
    assert not columns.update()
    append(path, StepRecord(1, 2.0, 8, 0.5, 16.0))
    whole = path.read_bytes()
    path.write_bytes(whole + whole.replace(b'"step": 1', b'"step": 2')[:40])
    columns.update()
    assert list(columns.step) == [1]
    path.write_bytes(whole + whole.replace(b'"step": 1', b'"step": 2'))
    columns.update()
    assert list(columns.step) == [1, 2]
    assert math.isnan(columns.numbers["mfu"][0])


VALUES = st.lists(
    st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf])), max_size=400
)


@given(VALUES, st.integers(5, 60))
def test_a_thinned_curve_keeps_its_ends_its_extremes_and_what_is_no_number(values, limit):
    kept = thinned(values, limit)
    assert kept == sorted(set(kept))
    assert len(kept) <= max(len(values) if len(values) <= limit else 0, limit + 5)
    if values:
        assert {0, len(values) - 1} <= set(kept)
    finite = [value for value in values if math.isfinite(value)]
    shown = [values[place] for place in kept if math.isfinite(values[place])]
    if finite:
        assert (min(shown), max(shown)) == (min(finite), max(finite))
    assert (len(finite) == len(values)) == all(math.isfinite(values[place]) for place in kept)


def test_a_million_steps_become_a_curve_with_its_spike():
    values = [1.0] * 1_000_000
    values[654_321] = 99.0
    drawn = curve(range(1, 1_000_001), values)
    assert len(drawn["step"]) <= POINTS + 5
    assert max(drawn["value"]) == 99.0
    assert drawn["step"][drawn["value"].index(99.0)] == 654_322


@pytest.mark.parametrize(("value", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_what_is_no_number_is_a_gap_with_a_word(value, word):
    assert curve([1, 2], [1.0, value]) == {"step": [1, 2], "value": [1.0, None], "odd": [[2, word]]}
