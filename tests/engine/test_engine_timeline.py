"""The seconds of a step add up, whatever lies inside whatever."""

import itertools

import pytest
import torch
from engine_worlds import in_threads
from exercise_transport import RANKS, exercise
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.timeline import COMPUTE, IDLE, PHASE, Timeline, outside_idle, seconds_by_category
from hpcdl.engine.transport.observed import Observed


class Ticks:
    """A clock that goes on by one whenever it is read."""

    def __init__(self):
        self.mark = itertools.count().__next__

    def settle(self):
        pass

    def seconds(self, mark):
        return float(mark)


def test_what_lies_inside_is_taken_off_what_lies_around():
    timeline = Timeline(Ticks())
    phase, forward = timeline.span(PHASE, "pipeline"), timeline.span(COMPUTE, "forward", microbatch=3)
    with phase, forward, timeline.span("all_reduce", "all_reduce"):  # 0 to 5, 1 to 4, 2 to 3
        pass
    spans = timeline.take().spans
    assert seconds_by_category(spans) == {PHASE: 2, COMPUTE: 2, "all_reduce": 1}
    assert [(span.name, span.depth, dict(span.facts)) for span in spans][1] == (
        "forward",
        1,
        {"microbatch": 3},
    )
    assert timeline.take().spans == []


def test_what_happens_while_idle_is_idling():
    timeline = Timeline(Ticks())
    idle, broadcast = timeline.span(IDLE, "idle"), timeline.span("broadcast", "broadcast")
    with idle, broadcast, timeline.span(COMPUTE, "forward"):
        pass
    spans = timeline.take().spans
    assert seconds_by_category(spans) == {IDLE: 5}
    assert [span.name for span, _ in outside_idle(spans)] == ["idle"]


TREES = st.recursive(
    st.just([]), lambda inner: st.lists(st.tuples(st.sampled_from("abc"), inner), max_size=3), max_leaves=12
)


@given(TREES)
def test_seconds_by_category_add_up_to_the_outermost_spans(tree):
    timeline = Timeline(Ticks())

    def walk(branches):
        for category, inner in branches:
            with timeline.span(category, category):
                walk(inner)

    walk(tree)
    spans = timeline.take().spans
    outermost = sum(span.seconds for span in spans if span.depth == 0)
    assert sum(seconds_by_category(spans).values()) == outermost


def test_a_span_is_closed_by_what_is_raised_inside():
    timeline = Timeline(Ticks())
    with pytest.raises(ValueError, match="inside"), timeline.span(COMPUTE, "forward"):
        raise ValueError("inside")
    assert [span.depth for span in timeline.take().spans] == [0]


def test_an_observed_door_keeps_every_promise_of_the_door():
    in_threads(RANKS, lambda transport: exercise(Observed(transport, Timeline())))


def test_an_operation_is_followed_from_its_start_to_the_end_of_its_wait():
    def work(transport):
        observed = Observed(transport, Timeline())
        handle = observed.all_reduce(torch.ones(3), observed.group((0, 1)))
        with observed.timeline.span(COMPUTE, "forward"):
            pass
        handle.wait()
        handle.wait()
        return observed.timeline.take()

    for taken in in_threads(2, work):
        (flight,) = taken.flights
        computed, waited = taken.spans
        assert (flight.category, flight.facts) == ("all_reduce", {"ranks": 2, "bytes": 12})
        assert flight.start < computed.start < computed.end < waited.start < waited.end <= flight.end
        assert waited.category == "all_reduce"


def test_waiting_for_a_message_is_idling_and_waiting_for_a_send_is_not():
    def work(transport):
        observed = Observed(transport, Timeline())
        if transport.rank == 0:
            observed.send(torch.ones(2), 1, tag=5).wait()
        else:
            handle = observed.receive(torch.zeros(2), 0, tag=5)
            observed.first([handle])
            handle.wait()
        return observed.timeline.take()

    sender, receiver = in_threads(2, work)
    assert set(seconds_by_category(sender.spans)) == {"p2p"}
    assert set(seconds_by_category(receiver.spans)) == {IDLE}
    assert [
        (flight.name, flight.facts["peer"]) for taken in (sender, receiver) for flight in taken.flights
    ] == [
        ("send", 1),
        ("receive", 0),
    ]
