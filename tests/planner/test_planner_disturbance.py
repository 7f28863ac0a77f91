import math

import numpy as np
import pytest

from hpcdl.errors import UsageError
from hpcdl.planner.disturbance import Disturbance, Draws, slowest

ONE = np.array([1.0])
FIRST = np.array([0])


def lognormal(rng, jitter, shape):
    deviation = math.sqrt(math.log1p(jitter**2))
    return rng.lognormal(-(deviation**2) / 2, deviation, shape)


@pytest.mark.parametrize("jitter", [0.01, 0.1, 0.5, 1.0])
def test_one_rank_keeps_its_mean_and_has_the_deviation_that_was_asked_for(jitter):
    values = slowest(jitter, 1.0, 1, 0)
    assert values.mean() == pytest.approx(1, rel=2e-3 * jitter)
    assert values.std() == pytest.approx(jitter, rel=0.02)


@pytest.mark.parametrize(("fast", "slow"), [(4, 0), (64, 0), (0, 3), (7, 1), (30, 2)])
def test_the_slowest_of_a_team_is_the_maximum_of_its_members(fast, slow):
    rng, jitter, factor, draws = np.random.default_rng(1), 0.1, 1.15, 40_000
    members = lognormal(rng, jitter, (fast + slow, draws))
    members[fast:] *= factor
    shares = np.array([0.01, 0.1, 0.5, 0.9, 0.99])
    expected = np.quantile(members.max(axis=0), shares)
    assert np.quantile(slowest(jitter, factor, fast, slow), shares) == pytest.approx(expected, rel=0.006)


def test_a_team_of_thousands_is_drawn_like_one_rank():
    """The expected maximum of 8192 normal variables is 3.80 standard deviations (Tippett's integral)."""
    jitter = 0.01
    points = np.linspace(-9, 9, 18001)
    cdf = np.array([math.erfc(-z / math.sqrt(2)) / 2 for z in points])
    most = 9 - 0.001 * (cdf**8192).sum()
    assert most == pytest.approx(3.80, abs=0.005)
    assert slowest(jitter, 1.0, 8192, 0).mean() == pytest.approx(math.exp(jitter * most), rel=1e-3)


def test_without_jitter_a_team_takes_its_time_or_that_of_a_slow_rank():
    assert set(slowest(0.0, 1.5, 8, 0)) == {1.0}
    assert set(slowest(0.0, 1.5, 7, 1)) == {1.5}


TEAM = {"jitter": 0.1, "factor": 1.2, "fast": 8, "slow": 1}


@pytest.mark.parametrize("changed", [{"fast": 9}, {"slow": 2}, {"factor": 1.3}])
def test_no_quantile_of_a_teams_slowest_falls_with_more_members_or_slower_ones(changed):
    assert (slowest(**TEAM | changed) >= slowest(**TEAM) * (1 - 1e-9)).all()


def test_a_team_waits_longer_under_more_jitter():
    """On average and mostly: jitter makes some of its operations shorter as well."""
    less, more = slowest(**TEAM), slowest(**TEAM | {"jitter": 0.2})
    assert more.mean() > less.mean()
    assert (more > less).mean() > 0.6


def test_nothing_is_disturbed_by_default():
    drawn = Draws(Disturbance(), 8, 0).seconds(np.array([1.0, 2.0]), np.array([0, 1]), 3)
    assert drawn.tolist() == [[1.0] * 3, [2.0] * 3]


def test_a_slow_rank_is_slow_in_everything_it_does_in_a_step():
    drawn = Draws(Disturbance(slow_share=0.3, slow_factor=2.0), 1, 0).seconds(
        np.ones(6), np.array([0, 0, 0, 1, 1, 1]), 4000
    )
    assert (drawn[:3] == drawn[0]).all()
    assert (drawn[3:] == drawn[3]).all()
    assert (drawn[0] == 2).mean() == pytest.approx(0.3, abs=0.03)
    assert ((drawn[0] == 2) & (drawn[3] == 2)).mean() == pytest.approx(0.09, abs=0.02)  # independent


def test_a_team_is_slow_if_any_of_it_is():
    drawn = Draws(Disturbance(slow_share=0.1, slow_factor=2.0), 4, 0).seconds(ONE, FIRST, 10_000)
    assert (drawn == 2).mean() == pytest.approx(1 - 0.9**4, abs=0.02)


def test_pauses_come_at_their_rate_and_once_an_operation():
    """Two operations of 0.05 s and 0.2 s on a team of 10, at 0.4 pauses a second of each rank."""
    disturbance = Disturbance(pause_rate=0.4, pause_seconds=3.0)
    drawn = Draws(disturbance, 10, 0).seconds(np.array([0.05, 0.2]), np.array([0, 0]), 20_000)
    for row, undisturbed in zip(drawn, (0.05, 0.2), strict=True):
        assert set(row.round(9)) == {undisturbed, undisturbed + 3.0}
        assert (row > 1).mean() == pytest.approx(1 - math.exp(-0.4 * 10 * undisturbed), abs=0.02)


def test_pauses_that_are_no_rare_events_are_refused():
    with pytest.raises(UsageError, match=r"pause_rate 5 a second is 0.5 pauses .* of 0.1 s") as refused:
        Draws(Disturbance(pause_rate=5, pause_seconds=0.01), 1, 0).seconds(0.1 * ONE, FIRST, 1)
    assert "at most 1," in refused.value.hint


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("jitter", -0.1, "jitter -0.1 is not a number from 0 to 2"),
        ("jitter", 3, "jitter 3 is not a number from 0 to 2"),
        ("jitter", math.nan, "jitter nan is not a number from 0 to 2"),
        ("slow_share", 1.5, "slow_share 1.5 is not a number from 0 to 1"),
        ("slow_share", -0.5, "slow_share -0.5 is not a number from 0 to 1"),
        ("slow_factor", 0.5, "slow_factor 0.5 is not a number of at least 1"),
        ("slow_factor", math.inf, "slow_factor inf is not a number of at least 1"),
        ("pause_rate", -1, "pause_rate -1 is not a number of at least 0"),
        ("pause_seconds", -1, "pause_seconds -1 is not a number of at least 0"),
    ],
)
def test_impossible_disturbances_are_refused_with_the_key_the_value_and_an_example(key, value, words):
    with pytest.raises(UsageError) as refused:
        Disturbance(**{key: value})
    assert refused.value.message == words
    assert refused.value.hint.startswith(f"set {key} to one; ")
