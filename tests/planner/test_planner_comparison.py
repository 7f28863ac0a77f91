"""Two plans side by side."""

import pytest

from hpcdl.planner.comparison import Comparison
from hpcdl.planner.question import Question
from hpcdl.planner.whatif import changed


@pytest.fixture
def question(experiment_of, perlmutter):
    return Question(experiment_of(batch=64), perlmutter)


def compare(first, second, gpus=16):
    return Comparison(("now", "then"), (first.ask(gpus), second.ask(gpus)))


def test_the_terms_account_for_the_whole_difference(question):
    found = compare(question, changed(question, ["link.inter=0.25x", "device.flops=0.5x"]))
    before, after = (outcome.best for outcome in found.outcomes)
    gained = sum(change.difference for change in found.seconds)
    assert gained == pytest.approx(after.step_seconds - before.step_seconds)
    assert gained > 0
    held = sum(change.difference for change in found.gib)
    assert held == pytest.approx(after.memory_gib - before.memory_gib)
    assert found.speedup == pytest.approx(before.step_seconds / after.step_seconds)


def test_the_same_question_twice_differs_in_nothing(question):
    found = compare(question, question)
    assert found.speedup == 1
    assert {change.difference for change in (*found.seconds, *found.gib)} == {0}


def test_a_side_that_cannot_run_says_why(question):
    found = compare(changed(question, ["device.memory=1MiB", "node.memory=1MiB"]), question)
    assert found.speedup is None
    assert {change.before for change in found.seconds} == {None}
    document = found.to_json()
    assert [plan["runs"] for plan in document["plans"]] == [False, True]
    assert "can run" in document["plans"][0]["reason"]
    assert document["plans"][1]["reason"] is None
    assert document["breakdown"]["forward"]["before"] is None
