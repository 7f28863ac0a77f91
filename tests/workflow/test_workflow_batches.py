"""Batches and turns: every point once, no more than a limit together, and no more at a time than may run."""

from __future__ import annotations

import heapq
import random

from hypothesis import given
from hypothesis import strategies as st

from hpcdl.workflow.sweeps.batches import admitted, alike, turns


@given(st.lists(st.integers(0, 3)), st.integers(1, 7))
def test_every_item_is_in_one_batch_of_its_kind_and_none_is_too_large(kinds, most):
    items = list(enumerate(kinds))
    found = alike(items, lambda item: item[1], most)
    assert sorted(item for batch in found for item in batch) == items
    assert all(1 <= len(batch) <= most and len({kind for _, kind in batch}) == 1 for batch in found)
    for kind in set(kinds):
        sizes = [len(batch) for batch in found if batch[0][1] == kind]
        assert sizes == [most] * (len(sizes) - 1) + [kinds.count(kind) - most * (len(sizes) - 1)]


def test_two_thousand_and_five_hundred_make_three_arrays_below_the_limit_of_slurm():
    assert [len(batch) for batch in alike(range(2500), lambda _: "same", 1001)] == [1001, 1001, 498]


@given(st.lists(st.sampled_from("ab")), st.integers(0, 5))
def test_the_first_items_are_admitted_while_there_is_room(doors, room):
    items = list(enumerate(doors))
    taken = admitted(items, lambda item: item[1], {"a": room})
    assert [item for item in taken if item[1] == "b"] == [item for item in items if item[1] == "b"]
    assert [item for item in taken if item[1] == "a"] == [item for item in items if item[1] == "a"][:room]
    assert taken == sorted(taken)


def most_at_a_time(sizes, found, seed):
    """How many points run at a time when every element takes its own time, as a scheduler would run them."""
    clock = random.Random(seed)
    ends: list[float] = []  # when each batch is over
    spans = []
    for size, turn in zip(sizes, found, strict=True):
        begin = max((ends[place] for place in turn.waits), default=0.0)
        lanes = [begin] * (turn.at_once or size)
        for _ in range(size):
            start = heapq.heappop(lanes)
            heapq.heappush(lanes, end := start + clock.random())
            spans.append((start, end))
        ends.append(max(lanes))
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


@given(st.lists(st.integers(1, 12), max_size=8), st.integers(1, 6), st.integers(0, 99))
def test_no_more_run_at_a_time_than_may_however_long_each_takes(sizes, at_once, seed):
    found = turns(sizes, at_once)
    assert most_at_a_time(sizes, found, seed) <= at_once
    for number, turn in enumerate(found):
        assert all(place < number for place in turn.waits)


@given(st.integers(1, 6), st.integers(0, 9))
def test_single_jobs_fill_every_slot(at_once, more):
    found = turns([1] * (at_once + more), at_once)
    assert [turn.waits for turn in found] == [()] * at_once + [(place,) for place in range(more)]


@given(st.lists(st.integers(1, 12)))
def test_without_a_limit_nobody_waits(sizes):
    assert all(turn == (None, ()) for turn in turns(sizes, None))


def test_an_array_with_slots_for_all_its_elements_is_not_throttled():
    assert [turn.at_once for turn in turns([3, 4, 5], 4)] == [None, None, 4]


def test_more_slots_than_anybody_could_take_cost_nothing():
    """A list of them all took gigabytes."""
    assert turns([3, 4], 1_000_000_000) == [(None, ()), (None, ())]
