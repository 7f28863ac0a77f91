"""Which attempts are lives of one job follows from the links that the scripts made."""

from hypothesis import given
from hypothesis import strategies as st

from hpcdl.runs.blame import Evidence
from hpcdl.runs.lives import Life, lives, withheld
from hpcdl.runs.record import Attempt, RunState, attempts, former
from hpcdl.telemetry import ExitRecord, RunEvent

JOBS = st.sampled_from(["7", "8", "9"])


def test_a_run_of_which_no_job_was_run_again_has_no_further_lives():
    assert lives({1: "process 4 on login1", 2: "process 5 on login2"}, {1: "7", 2: "8"}) == {}
    assert lives({}, {}) == {}


def test_a_number_that_was_kept_from_another_job_is_no_life_of_its_keeper():
    claims = {1: "process 4", 2: "process 5", 3: "requeued 7"}
    starts = {1: "7", 2: "7", 3: "7"}
    assert lives(claims, starts) == {3: Life("7", 1, 1)}
    assert withheld(claims, starts) == {2}


def test_a_later_job_may_be_run_again_too():
    claims = {1: "process 4", 2: "requeued 7", 3: "process 5", 4: "requeued 8", 5: "requeued 8"}
    starts = {1: "7", 2: "7", 3: "8", 4: "8", 5: "8"}
    assert lives(claims, starts) == {2: Life("7", 1, 1), 4: Life("8", 3, 3), 5: Life("8", 4, 3)}


@given(st.lists(st.one_of(JOBS.map("requeued {}".format), st.just("process 1")), max_size=8), st.data())
def test_whatever_the_links_say_each_life_comes_after_the_one_before_it_and_all_are_of_one_job(owners, data):
    claims = dict(enumerate(owners, start=1))
    starts = {number: data.draw(JOBS) for number in claims}
    found = lives(claims, starts)
    for number, life in found.items():
        assert life.first <= life.before < number
        assert claims[number] == f"requeued {life.job_id}"
        assert found.get(life.before, Life(life.job_id, 0, life.before)).first == life.first


def links(claims, starts):
    """The events that stand for links."""
    claimed = [RunEvent("claimed", 0.0, number, {"by": by}) for number, by in claims.items()]
    return claimed + [RunEvent("started", 0.0, number, {"job_id": job}) for number, job in starts.items()]


SUBMITTED = RunEvent("submitted", 100.0, 1, {"job_id": "7;cluster"})
AGAIN = links({1: "process 4", 2: "requeued 7", 3: "requeued 7"}, {1: "7", 2: "7", 3: "7"})


def test_former_lives_are_requeued_and_the_newest_has_the_id_that_was_submitted():
    found = attempts([SUBMITTED, *AGAIN])
    assert [(each.number, each.state, each.job_id) for each in found] == [
        (1, RunState.REQUEUED, "7;cluster"),
        (2, RunState.REQUEUED, "7;cluster"),
        (3, RunState.RUNNING, "7;cluster"),
    ]
    assert [each.again for each in found] == [False, True, True]
    assert not any(each.by_start for each in found[1:])


def test_an_end_that_was_seen_before_the_job_was_run_again_stays():
    seen = RunEvent("observed", 150.0, 1, {"state": "failed", "exit_code": 7, "reason": "rank 1"})
    first, *_ = attempts([SUBMITTED, *AGAIN, seen])
    assert (first.state, first.exit_code, first.reason) == (RunState.FAILED, 7, "rank 1")


def test_a_job_whose_submission_nobody_noted_is_known_by_the_id_its_script_left():
    assert [each.job_id for each in attempts(AGAIN)] == ["7", "7", "7"]


def test_an_attempt_that_was_withheld_from_its_job_is_given_up_and_keeps_the_id_of_that():
    claimed = links({1: "process 4", 2: "process 5", 3: "requeued 7"}, {1: "7", 2: "7", 3: "7"})
    second = RunEvent("submitted", 200.0, 2, {"job_id": "8"})
    assert [(each.job_id, each.given_up) for each in attempts([SUBMITTED, second, *claimed])] == [
        ("7;cluster", False),
        ("8", True),
        ("7;cluster", False),
    ]
    assert attempts([SUBMITTED, *claimed])[1].job_id is None


def test_of_a_former_life_what_it_left_tells_why_it_ended():
    attempt = Attempt(1, "7", RunState.RUNNING)
    told = ExitRecord(0, "n1", 1.0, 143, 15)
    cases = [
        (Evidence(None), "left no exit record"),
        (Evidence(143, [told], 1), "told to end (SIGTERM)"),
        (Evidence(143), "told to end (SIGTERM)"),
        (Evidence(0, paused=40), "stopped after step 40, saved"),
        (Evidence(7), "ended with exit code 7"),
    ]
    for evidence, words in cases:
        after = former(attempt, evidence)
        assert (after.state, after.exit_code) == (RunState.REQUEUED, evidence.script_exit)
        assert words in after.reason
        assert after.state.over
        assert not after.state.failed
