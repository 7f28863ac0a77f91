"""Whoever stands still among however many, exactly those are blamed that the others wait for."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hpcdl.engine.inquest import Inquest
from hpcdl.engine.ranks import Place
from hpcdl.engine.suspecting import (
    Finding,
    Sight,
    blamed,
    deadlock,
    judge,
    pace,
    patience,
    room,
    silence,
    standstill,
)
from hpcdl.telemetry import Heartbeat

SILENCE = 10.0
STATES = ("waits", "stuck", "silent", "silent in a wait", "never came", "works", "may take longer")


def heartbeat(rank, state="waits", beat=1):
    """What a rank in that state tells of itself."""
    waiting = state in ("waits", "silent in a wait")
    still, allowed = {"works": (1.0, 5.0), "may take longer": (8.0, 50.0)}.get(state, (8.0, 5.0))
    at, phase = ("all_reduce over 4 ranks", "update") if waiting else ("forward of microbatch 2", "pipeline")
    return Heartbeat(
        rank, f"n{rank // 4}", beat, 7, phase, at, waiting, 99, still, allowed, f"own.py:{rank} in f"
    )


def sight(rank, state):
    if state == "never came":
        return Sight(rank, None, 11.0)
    return Sight(rank, heartbeat(rank, state), 11.0 if state.startswith("silent") else 0.5)


def found(states):
    return judge([sight(rank, state) for rank, state in enumerate(states)], SILENCE)


@given(
    st.integers(1, 200),
    st.dictionaries(
        st.integers(0, 199),
        st.sampled_from(["stuck", "silent", "silent in a wait", "never came"]),
        max_size=20,
    ),
)
def test_exactly_the_culprits_are_blamed(ranks, planted):
    planted = {rank: state for rank, state in planted.items() if rank < ranks}
    verdict = found([planted.get(rank, "waits") for rank in range(ranks)])
    assert {sight.rank for sight in verdict.culprits} == set(planted)
    assert {sight.rank for sight in verdict.stuck} == {r for r, state in planted.items() if state == "stuck"}
    assert verdict.finding is (Finding.BLAME if planted else Finding.DEADLOCK)


@given(st.lists(st.sampled_from(STATES), min_size=1, max_size=30))
def test_nobody_is_blamed_while_somebody_may_still_be_at_work(states):
    assume({"works", "may take longer"} & set(states))
    assert found(states).finding is Finding.WAIT


def test_a_rank_to_blame_is_named_with_what_is_known_of_it():
    told = blamed(found(["waits", "silent", "waits", "stuck", "never came"]).culprits)
    assert (told.rank, told.host) == (3, "n0")  # who stands still while it is seen alive is surest
    place = "after step 7, pipeline, forward of microbatch 2, at own.py:3 in f"
    assert told.reason == f"stood still for 8 s {place}; as well as ranks 1, 4"
    told = blamed(found(["waits", "silent in a wait"]).culprits)
    assert told.reason.startswith("stood still for 8 s after step 7, update, all_reduce over 4 ranks")
    assert blamed([Sight(2, replace(heartbeat(2), still=1.0), 12.0)]).reason == (
        "no sign of life for 12 s; the last one after step 7, update, all_reduce over 4 ranks, at own.py:2 in f"
    )
    never = blamed([Sight(2, None, 12.0)])
    assert (never.host, never.reason) == ("unknown host", "no sign of life for 12 s, nor ever one before")


def test_where_nobody_stands_out_it_is_told_what_all_wait_for():
    sights = [sight(rank, "waits") for rank in range(12)]
    receiving = replace(heartbeat(12), at="receive from rank 3")
    assert deadlock([*sights, Sight(12, receiving, 0.0)]) == (
        "all ranks wait for each other: ranks 0, 1, 2, 3, 4, 5, 6, 7 … in all_reduce over 4 ranks; "
        "rank 12 in receive from rank 3"
    )


def test_before_its_first_step_a_rank_says_so():
    early = replace(heartbeat(0), step=0, phase="start", at="", place="")
    assert standstill(early) == "stood still for 8 s before its first step, start"


@pytest.mark.parametrize(
    ("asked", "step", "timeout", "seconds"),
    [
        (None, None, 1800, 600),  # nothing is known of a step yet
        (None, 2.0, 1800, 600),
        (None, 50.0, 1800, 1000),  # twenty steps
        (None, 200.0, 1800, 1440),  # before the runtime gives up without a name
        (None, 2.0, 60, 48),
        (5, 200.0, 60, 5),
        (9000, 1.0, 1800, 9000),
        (0, 1.0, 1800, None),
    ],
)
def test_how_long_a_rank_may_stand_still(asked, step, timeout, seconds):
    assert patience(asked, step, timeout) == seconds


@pytest.mark.parametrize(
    ("usual", "step_done", "phase", "most", "seconds"),
    [
        (600.0, True, "pipeline", 1440.0, 600.0),
        (600.0, True, "checkpoint", 1440.0, 1440.0),  # the runtime of those that wait would speak first
        (600.0, False, "start", 1440.0, 1440.0),
        (600.0, False, "pre-flight", 1440.0, 600.0),
        (100.0, False, "data", 1440.0, 1000.0),
        (600.0, False, "start", math.inf, 6000.0),
        (9000.0, True, "checkpoint", 1440.0, 9000.0),
        (None, False, "start", 1440.0, None),
    ],
)
def test_where_a_rank_may_need_longer(usual, step_done, phase, most, seconds):
    assert room(usual, phase, most, step_done=step_done) == seconds


@given(st.one_of(st.none(), st.floats(1, 1e5)), st.integers(1, 100_000))
def test_all_ranks_together_write_a_hundred_small_files_a_second_at_most(usual, ranks):
    assert ranks / pace(usual, ranks) <= 100.001
    assert pace(usual, ranks) <= max(5, ranks / 100)
    assert silence(usual or 600, pace(usual, ranks)) >= 4 * pace(usual, ranks)


# --- who looks at whom -----------------------------------------------------------------------------------------


class Ranks:
    """Ranks of which some have fallen silent, each with an inquest; a look a second."""

    def __init__(self, ranks, silent):
        self.ranks, self.silent = ranks, silent
        self.time, self.reads = 0, 0
        self.inquests = {
            rank: Inquest(Place(rank, 0, ranks, "n0"), self.read, SILENCE)
            for rank in range(ranks)
            if rank not in silent
        }

    def read(self, rank):
        self.reads += 1
        return heartbeat(rank, beat=1 if rank in self.silent else self.time)

    def look(self):
        """What each living rank knows after another second."""
        self.time += 1
        return {rank: inquest.look(float(self.time)) for rank, inquest in self.inquests.items()}


@given(st.integers(2, 24), st.sets(st.integers(0, 23), max_size=23))
def test_the_lowest_living_rank_and_only_that_finds_the_silent_ones(ranks, silent):
    silent = {rank for rank in silent if rank < ranks}
    assume(len(silent) < ranks)
    lowest = min(set(range(ranks)) - silent)
    world = Ranks(ranks, silent)
    for _ in range(100):
        told = world.look()
        assert all(sights is None for rank, sights in told.items() if rank != lowest)
        if told[lowest] is not None:
            break
    verdict = judge([*told[lowest], Sight(lowest, heartbeat(lowest), 0.0)], SILENCE)
    assert {sight.rank for sight in verdict.silent} == silent
    assert {sight.rank for sight in verdict.silent + verdict.stuck} == silent
    assert world.time <= 2 * SILENCE + len(silent) + 2


def test_a_rank_that_finds_a_lower_one_alive_reads_no_more_than_that_one():
    world = Ranks(1000, set())
    world.look()
    world.look()
    world.reads = 0
    world.look()
    assert world.reads == 999 + 999  # rank 0 reads all others, each of them reads rank 0
