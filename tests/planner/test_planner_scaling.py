"""Several numbers of devices at once."""

import pytest

from hpcdl.errors import UsageError
from hpcdl.planner.counts import MOST_COUNTS, counts
from hpcdl.planner.question import Question
from hpcdl.planner.scaling import scaling


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("64", (64,)),
        ("256,64,128,64", (64, 128, 256)),
        ("64-1024", (64, 128, 256, 512, 1024)),
        ("64-1000", (64, 128, 256, 512)),
        ("64-4096:x4", (64, 256, 1024, 4096)),
        ("64-256:+64", (64, 128, 192, 256)),
        ("3, 8-16", (3, 8, 16)),
        ("8-8", (8,)),
    ],
)
def test_numbers_of_devices_are_lists_and_ranges(text, found):
    assert counts(text) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is not a number of devices"),
        ("64;128", "'64;128' is not a number of devices"),
        ("-8", "'-8' is not a number of devices"),
        ("64,", "'' is not a number of devices"),
        ("8.5", "'8.5' is not a number of devices"),
        ("0", "'0' does not grow, or begins with no device"),
        ("0-8", "'0-8' does not grow"),
        ("8-64:x1", "'8-64:x1' does not grow"),
        ("8-64:+0", "'8-64:+0' does not grow"),
        ("64-8", "'64-8' ends before it begins"),
        ("9" * 5000, "is not a number of devices"),
        ("9" * 12, "more devices than any machine has"),
        ("8-" + "9" * 12, "more devices than any machine has"),
        ("1-100000:+1", f"more than {MOST_COUNTS} numbers"),
    ],
)
def test_what_is_no_number_of_devices_is_named(text, words):
    with pytest.raises(UsageError) as refused:
        counts(text)
    assert words in refused.value.message
    assert refused.value.hint


def test_each_point_is_the_plan_of_that_number(experiment_of, perlmutter):
    question = Question(experiment_of(batch=64), perlmutter)
    found = scaling(question, (4, 8, 16))
    for point in found.points:
        alone = question.plan(point.gpus).best
        assert (point.outcome.best.decomposition, point.outcome.best.step_seconds) == (
            alone.decomposition,
            alone.step_seconds,
        )
    first, *_, last = found.points
    assert first.efficiency == 1
    rate = last.tokens_per_second / first.tokens_per_second
    assert last.efficiency == pytest.approx(rate * 4 / 16)


def test_a_token_budget_is_time_and_node_hours(experiment_of, perlmutter):
    found = scaling(Question(experiment_of(batch=64), perlmutter), (8,), tokens=1e9)
    row = found.to_json()["points"][0]
    best = found.points[0].outcome.best
    assert row["hours_to_tokens"] == pytest.approx(1e9 / best.tokens_per_second / 3600)
    assert row["node_hours_to_tokens"] == pytest.approx(2 * row["hours_to_tokens"])
    assert row["node_hours_per_billion_tokens"] == pytest.approx(row["node_hours_to_tokens"])
    assert row["node_hours_per_step"] == pytest.approx(2 * best.step_seconds / 3600)
    assert row["tokens_per_day"] == pytest.approx(best.tokens_per_second * 86400)


def test_a_number_that_cannot_run_stands_among_the_others_with_its_reason(experiment_of, perlmutter):
    found = scaling(Question(experiment_of(batch=32), perlmutter), (11, 16))
    eleven, sixteen = found.to_json()["points"]
    assert not eleven["runs"]
    assert "over 11 devices of perlmutter can run" in eleven["reason"]
    assert eleven["step_seconds"] is None
    assert sixteen["runs"]
    assert sixteen["efficiency"] == 1  # the first that runs


def test_an_explicit_decomposition_runs_on_its_own_number_only(experiment_of, perlmutter):
    found = scaling(Question(experiment_of(parallelism={"data": 8}), perlmutter), (4, 8))
    assert [point.runs for point in found.points] == [False, True]
    assert "data 8" in found.points[0].outcome.refusal.message


def test_a_machine_without_a_network_ends_at_its_node(experiment_of, perlmutter):
    node = perlmutter.nodes["gpu40"]
    alone = node.model_copy(update={"links": node.links.model_copy(update={"nic_bandwidth": 0.0})})
    site = perlmutter.model_copy(update={"nodes": {**perlmutter.nodes, "gpu40": alone}})
    found = scaling(Question(experiment_of(), site), (4, 8))
    assert [point.runs for point in found.points] == [True, False]
    assert "no network" in found.points[1].outcome.refusal.message


def test_the_front_is_what_nobody_beats_in_time_and_node_hours(experiment_of, perlmutter):
    """5 devices spread over 5 nodes: slower than 8 on 2 nodes, and dearer."""
    shape = dict(layers=24, hidden=2048, heads=16, sequence=2048)
    found = scaling(Question(experiment_of(batch=320, **shape), perlmutter), (4, 5, 8))
    four, five, eight = found.points
    assert five.hours(1) > eight.hours(1)
    assert five.node_hours(1) > eight.node_hours(1)
    assert not five.front
    assert eight.front
    assert four.front is (four.node_hours(1) < eight.node_hours(1))


def test_under_weak_scaling_the_batch_grows(experiment_of, perlmutter):
    question = Question(experiment_of(batch=32), perlmutter)
    found = scaling(question, (4, 8), weak=True)
    batches = [point.outcome.plan.case.training.global_batch for point in found.points]
    assert batches == [32, 64]
    assert found.points[1].efficiency > scaling(question, (4, 8)).points[1].efficiency


def test_a_weak_batch_must_stay_whole(experiment_of, perlmutter):
    with pytest.raises(UsageError, match="a global batch of 32 on 3 devices is 42"):
        scaling(Question(experiment_of(batch=32), perlmutter), (3, 4), weak=True)


def test_ctrl_c_ends_with_the_best_so_far(experiment_of, perlmutter, monkeypatch):
    """Somebody presses it within the second search."""
    monkeypatch.setattr("hpcdl.planner.choices._BLOCK", 16)
    told = []

    def watch(done, total):
        told.append(done / total)
        if 1 / 3 < told[-1] < 2 / 3:
            raise KeyboardInterrupt

    found = scaling(Question(experiment_of(), perlmutter), (4, 8, 16), watch=watch)
    points = [(point.gpus, point.interrupted, point.runs) for point in found.points]
    assert points == [(4, False, True), (8, True, True)]
    assert told == sorted(told)


def test_progress_is_told_after_each_number(experiment_of, perlmutter):
    told = []
    scaling(
        Question(experiment_of(), perlmutter), (2, 4), watch=lambda done, total: told.append(done / total)
    )
    assert told == [0.5, 1.0]
