"""A run goes on after what is nobody's fault, and never without end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.runs.chains.deciding import AFTER_CAUSES, AFTER_STATES, GoOn, Link, Stop, decide
from hpcdl.runs.failures.causes import KINDS
from hpcdl.runs.record import RunState
from hpcdl.spec.chain import Chain

USUAL = Chain()
LINKS = st.builds(
    Link,
    st.sampled_from([state for state in RunState if state.over]),
    st.sampled_from([True, False, None]),
    st.sampled_from(["", *KINDS, *AFTER_CAUSES]),
    st.booleans(),
)
CHAINS = st.builds(Chain, attempts=st.integers(1, 12), without_progress=st.integers(1, 5))


@pytest.mark.parametrize("state", AFTER_STATES)
def test_after_what_a_scheduler_did_a_run_goes_on(state):
    assert isinstance(decide([Link(state, saved=True)], USUAL), GoOn)


@pytest.mark.parametrize("cause", AFTER_CAUSES)
def test_after_a_failure_that_is_not_the_programs_a_run_goes_on(cause):
    assert decide([Link(RunState.FAILED, saved=True, cause=cause)], USUAL) == GoOn(AFTER_CAUSES[cause])


@pytest.mark.parametrize("cause", ["", *sorted(set(KINDS) - set(AFTER_CAUSES))])
def test_after_any_other_failure_a_run_stops(cause):
    assert isinstance(decide([Link(RunState.FAILED, saved=True, cause=cause)], USUAL), Stop)


@pytest.mark.parametrize(
    "state",
    [
        state
        for state in RunState
        if state.over and state not in AFTER_STATES and state is not RunState.FAILED
    ],
)
def test_after_any_other_end_a_run_stops(state):
    assert isinstance(decide([Link(state, saved=True)], USUAL), Stop)


def test_two_attempts_in_a_row_that_saved_no_step_are_the_last():
    paused, vain = Link(RunState.PAUSED, saved=True), Link(RunState.TIMEOUT, saved=False)
    assert isinstance(decide([paused, vain], USUAL), GoOn)
    assert isinstance(decide([vain, paused, vain], USUAL), GoOn)
    stop = decide([paused, vain, vain], USUAL)
    assert stop == Stop("its newest 2 attempts saved no step, and chain.without_progress is 2")


def test_a_program_of_which_nobody_knows_how_far_it_came_is_not_said_to_stand_still():
    unknown = Link(RunState.PAUSED, saved=None)
    assert isinstance(decide([unknown] * 9, USUAL), GoOn)


def test_a_run_comes_to_as_many_attempts_as_it_may_and_no_more():
    paused = Link(RunState.PAUSED, saved=True)
    assert isinstance(decide([paused] * 4, Chain(attempts=5)), GoOn)
    assert decide([paused] * 5, Chain(attempts=5)) == Stop(
        "it has come to 5 attempts, and chain.attempts is 5"
    )
    assert "chain.attempts is 1" in decide([paused], Chain(attempts=1)).why


def test_attempts_that_never_ran_are_not_counted():
    refused, paused = Link(RunState.REFUSED), Link(RunState.PAUSED, saved=True)
    assert isinstance(decide([refused, refused, paused], Chain(attempts=2)), GoOn)


def test_of_a_run_that_is_not_over_the_answer_is_that_of_its_walltime():
    running = Link(RunState.RUNNING, saved=False)
    assert isinstance(decide([running], USUAL), GoOn)
    assert isinstance(decide([running], Chain(attempts=1)), Stop)
    assert isinstance(decide([], USUAL), GoOn)


@given(st.lists(LINKS, min_size=1, max_size=15), CHAINS)
def test_whatever_happened_a_run_that_goes_on_is_within_its_limits_and_nobody_stopped_it(links, chain):
    if isinstance(decide(links, chain), GoOn):
        ran = [link for link in links if link.state is not RunState.REFUSED]
        assert 1 < chain.attempts > len(ran)
        assert not links[-1].stopped
        assert any(link.saved is not False for link in ran[-chain.without_progress :]) or (
            len(ran) < chain.without_progress
        )
        assert links[-1].state in AFTER_STATES or links[-1].cause in AFTER_CAUSES


@given(st.lists(LINKS, min_size=1, max_size=15), CHAINS)
def test_a_wider_limit_never_stops_what_a_narrower_one_lets_go_on(links, chain):
    wider = Chain(attempts=chain.attempts + 1, without_progress=chain.without_progress + 1)
    if isinstance(decide(links, chain), GoOn):
        assert isinstance(decide(links, wider), GoOn)


@given(st.lists(LINKS, min_size=1, max_size=15), CHAINS)
def test_every_end_has_a_reason(links, chain):
    assert decide(links, chain).why
