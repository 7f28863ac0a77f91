"""A traced run shows every rank's forward and backward where and when they were."""

import json
from collections import defaultdict
from itertools import pairwise

import pytest
from engine_runs import TRAINING, Run
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.chrome import RankTrace, merged
from hpcdl.engine.timeline import Span, Timeline
from hpcdl.engine.trace import Tracer, order, title
from hpcdl.engine.transport.memory import World
from hpcdl.engine.transport.observed import Observed
from hpcdl.runs.archive import packing
from hpcdl.spec.decomposition import Decomposition

FOUR = Decomposition(pipeline=2, data=2, microbatch=1)
MICROBATCHES, STEPS = 4, 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four ranks of which steps 3 and 4 are traced."""
    return Run(
        tmp_path_factory.mktemp("traced"),
        FOUR,
        training=TRAINING | {"steps": 5},
        trace={"first": 3, "steps": STEPS},
        checkpoint={"every": 4},
    ).complete()


@pytest.fixture(scope="module")
def lanes(run):
    """Spans by rank and name of the lane."""
    return by_lane(json.loads(run.folder.trace(3, 4).read_text()))


def by_lane(trace):
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in trace["traceEvents"]
        if event["name"] == "thread_name"
    }
    lanes = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            lanes[event["pid"], names[event["pid"], event["tid"]]].append(event)
    return lanes


def end(event):
    return event["ts"] + event["dur"]


def test_every_rank_is_a_process_named_by_its_place(run):
    events = json.loads(run.folder.trace(3, 4).read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {rank: title(FOUR, rank) for rank in range(4)}
    assert names[3] == "rank 3 · stage 1 · data 1"
    assert sorted(range(4), key=lambda rank: order(FOUR, rank)) == [0, 2, 1, 3]
    assert sorted(path.name for path in run.folder.traces.iterdir()) == [
        *(f"rank-{rank:05d}.json" for rank in range(4)),
        "steps-3-4.json",
    ]


def test_each_microbatch_goes_forward_and_back_once_a_step_on_every_stage(lanes):
    for rank in range(4):
        seen = [
            (event["name"], event["args"]["microbatch"])
            for event in lanes[rank, "compute"]
            if "microbatch" in event["args"]
        ]
        wanted = [
            (f"{what} {microbatch}", microbatch)
            for what in ("forward", "backward")
            for microbatch in range(MICROBATCHES)
        ]
        assert sorted(seen) == sorted(wanted * STEPS)
        assert sum(event["name"] == "optimizer" for event in lanes[rank, "compute"]) >= STEPS


def test_spans_of_one_lane_follow_each_other(lanes):
    for spans in lanes.values():
        for earlier, later in pairwise(spans):
            assert end(earlier) <= later["ts"] + 0.002  # times are rounded to nanoseconds


def test_a_stage_starts_on_a_microbatch_when_the_stage_before_has_finished_it(lanes):
    """Ranks of one host read one clock, so nothing is forgiven."""
    for first, second in ((0, 2), (1, 3)):
        for name in (f"forward {microbatch}" for microbatch in range(MICROBATCHES)):
            sent, taken = (
                [event for event in lanes[rank, "compute"] if event["name"] == name]
                for rank in (first, second)
            )
            assert all(end(a) < b["ts"] for a, b in zip(sent, taken, strict=True))
        for name in (f"backward {microbatch}" for microbatch in range(MICROBATCHES)):
            sent, taken = (
                [event for event in lanes[rank, "compute"] if event["name"] == name]
                for rank in (second, first)
            )
            assert all(end(a) < b["ts"] for a, b in zip(sent, taken, strict=True))


def test_phases_waits_and_what_is_in_flight_have_lanes_of_their_own(lanes):
    for rank in range(4):
        phases = [event["name"] for event in lanes[rank, "phases"]]
        assert phases == [*["data", "pipeline", "update"] * STEPS, "checkpoint"]
        assert {event["cat"] for event in lanes[rank, "waiting"]} >= {"idle", "all_reduce"}
        messages = [event for lane in ("p2p", "p2p 2") for event in lanes[rank, lane]]
        assert {event["args"]["peer"] for event in messages} == {(rank + 2) % 4}
        assert all(event["args"]["ranks"] in (2, 4) for event in lanes[rank, "all_reduce"])


def test_an_arrow_leads_from_each_message_sent_to_where_it_was_received(run):
    events = json.loads(run.folder.trace(3, 4).read_text())["traceEvents"]
    starts, ends = ({e["id"]: e for e in events if e["ph"] == half} for half in "sf")
    assert starts.keys() == ends.keys()
    assert len(starts) == STEPS * 2 * 2 * MICROBATCHES  # two pipelines, two directions
    for name, start in starts.items():
        assert start["pid"] == (ends[name]["pid"] + 2) % 4
        assert start["ts"] < ends[name]["ts"] + 1


def test_collecting_a_run_takes_its_traces_along(run):
    kept = {path.name for path in packing.contents(run.folder) if path.parent == run.folder.traces}
    assert (
        kept == {path.name for path in run.folder.traces.iterdir()} >= {"rank-00003.json", "steps-3-4.json"}
    )


def test_the_time_of_every_step_is_accounted_for(run):
    for rank in range(4):
        for record in run.steps(rank):
            assert sum(record.seconds.values()) == pytest.approx(record.step_seconds)
            assert record.seconds["compute"] > 0
            assert record.seconds["other"] >= 0
            assert record.memory_peak > 50e6


def test_ranks_of_two_hosts_are_laid_on_the_barrier_they_left_together():
    """Rank 1 is always late to notice, host b once; its clock is 93 seconds behind."""

    def trace(rank, host, barriers, start):
        span = Span("compute", "forward", start, start + 1, facts={"microbatch": 0})
        return RankTrace(rank, host, f"rank {rank}", rank, barriers, [span], [])

    traces = [
        trace(0, "a", [100.0, 101.0, 102.0], 103.0),
        trace(1, "a", [100.5, 101.5, 102.5], 103.0),
        trace(2, "b", [7.0, 8.0, 9.75], 10.0),
    ]
    lanes = by_lane(merged(traces))
    assert [lanes[rank, "compute"][0]["ts"] for rank in range(3)] == [1e6, 1e6, 1e6]


SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=20)


@given(SPANS)
def test_operations_in_flight_together_get_as_many_lanes_as_are_needed(times):
    flights = [Span("all_reduce", "all_reduce", start, start + length) for start, length in times]
    lanes = by_lane(merged([RankTrace(0, "a", "rank 0", 0, [0.0], [], flights)]))
    most = max((sum(s <= start < s + length for s, length in times) for start, _ in times), default=0)
    assert len(lanes) == most
    assert sum(map(len, lanes.values())) == len(flights)
    for spans in lanes.values():
        assert all(end(a) <= b["ts"] for a, b in pairwise(spans))


def test_nothing_is_traced_unless_asked(tmp_path):
    run = Run(tmp_path, Decomposition())
    door = Observed(World(1).transport(0), Timeline())
    tracer = Tracer(run.resolved, run.folder, door)
    for step in (0, 1, 2):
        tracer.begin(step)
        door.barrier()
        tracer.end(step)
        assert not door.timeline.take().flights
    assert not run.folder.traces.exists()


def test_a_trace_that_begins_before_a_restart_holds_the_steps_that_are_left(tmp_path):
    run = Run(tmp_path, Decomposition(), trace={"first": 2, "steps": 100})
    door = Observed(World(1).transport(0), Timeline())
    tracer = Tracer(run.resolved, run.folder, door)
    for step in (5, 6):  # training has six
        tracer.begin(step)
        with door.timeline.span("compute", "forward", microbatch=step):
            pass
        tracer.end(step)
    lanes = by_lane(json.loads(run.folder.trace(5, 6).read_text()))
    assert [event["name"] for event in lanes[0, "compute"]] == ["forward 5", "forward 6"]
