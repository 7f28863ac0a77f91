"""Several hosts note what they do with a run and see of it; their clocks tell nothing."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.run_folder import RunFolder
from hpcdl.runs import claims, store
from hpcdl.runs.merging import merged
from hpcdl.runs.record import RunState, attempts
from hpcdl.telemetry import RunEvent, append

ENDS = ["completed", "failed", "paused", "cancelled", "preempted", "timeout", "node failed"]


def event(kind, attempt, **detail):
    return RunEvent(kind, 0.0, attempt, detail)


def life(number, end, lost):
    """All that happens to one attempt, as one that sees everything would note it."""
    told = [
        event("submitting", number, job_name=f"run.{number}"),
        event("submitted", number, job_id=str(number)),
        event("observed", number, state="queued", reason="Priority"),
        event("observed", number, state="running"),
    ]
    if lost:
        told.append(event("observed", number, state="lost", reason="nobody knows it"))
    return [*told, event("observed", number, state=end, exit_code=0 if end == "completed" else 3)]


@st.composite
def seen_from_several_hosts(draw):
    """A run of some attempts, and who noted what of it: each event at least one host, at any time of its clock."""
    ends = draw(st.lists(st.sampled_from(ENDS), min_size=1, max_size=4))
    truth = [told for number, end in enumerate(ends, 1) for told in life(number, end, draw(st.booleans()))]
    hosts = draw(st.integers(1, 4))
    files = [[] for _ in range(hosts)]
    skew = [draw(st.sampled_from([0.0, 300.0, -300.0, 86400.0])) for _ in files]
    for moment, told in enumerate(truth):
        for host in draw(st.sets(st.integers(0, hosts - 1), min_size=1)):
            files[host].append(replace(told, time=skew[host] + moment))
    return truth, draw(st.permutations(files))


@given(seen_from_several_hosts())
def test_attempts_are_the_same_whoever_noted_what_and_whatever_the_clocks_said(seen):
    truth, files = seen
    told = [replace(attempt, submitted=0.0) for attempt in attempts(merged(files))]
    assert told == attempts(truth)


@given(seen_from_several_hosts())
def test_nothing_is_lost_and_each_host_stays_in_its_order(seen):
    _, files = seen
    together = merged(files)
    assert len(together) == sum(map(len, files))
    for file in files:
        of_host = [told for told in together if any(told is own for own in file)]
        assert of_host == sorted(file, key=lambda told: told.attempt)


def test_of_two_ends_the_one_that_tells_more_counts_in_either_order():
    here = [event("observed", 1, state="failed", exit_code=1)]
    there = [event("observed", 1, state="lost"), event("observed", 1, state="timeout")]
    for files in ([here, there], [there, here]):
        assert attempts(merged(files))[0].state is RunState.TIMEOUT


def test_a_job_that_waits_again_is_said_to_wait():
    states = ["queued", "running", "queued"]
    assert (
        attempts(merged([[event("observed", 1, state=state) for state in states]]))[0].state.value == "queued"
    )


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def test_another_host_writes_a_file_of_its_own(folder, monkeypatch):
    store.note(folder, "created", host=socket.gethostname())
    store.note(folder, "submitted", 1, job_id="7")
    before = folder.launcher_events.read_bytes()
    monkeypatch.setattr(socket, "gethostname", lambda: "nid/001 x")
    store.note(folder, "observed", 1, state="running")
    assert folder.launcher_events.read_bytes() == before
    assert (folder.path / "events.launcher.nid%2F001%20x.jsonl").is_file()
    assert [told.kind for told in store.events(folder)] == ["created", "submitted", "observed"]
    assert store.current(folder).state is RunState.RUNNING


def test_a_run_that_names_no_host_is_noted_where_it_always_was(folder):
    store.note(folder, "created")
    store.note(folder, "submitted", 1, job_id="7")
    assert len(folder.launcher_events.read_text().splitlines()) == 2
    assert folder.all_launcher_events() == [folder.launcher_events]


def test_half_a_line_of_a_writer_that_died_costs_that_line_only(folder):
    store.note(folder, "created", host=socket.gethostname())
    with folder.launcher_events.open("a") as file:
        file.write('{"kind": "submitt')
    append(folder.launcher_events, RunEvent("submitted", 1.0, 1, {"job_id": "7"}))
    assert [told.kind for told in store.events(folder)] == ["created", "submitted"]


def test_claims_and_starts_are_attempts_too(folder):
    claims.claim(folder, 1, "somebody")
    assert store.current(folder).number == 1
    assert store.current(folder).state is RunState.PREPARED
    assert store.current(folder).claimed_by == "somebody"
    folder.start(1).parent.mkdir()
    folder.start(1).symlink_to("12")
    assert (store.current(folder).state, store.current(folder).job_id) == (RunState.RUNNING, "12")
    store.note(folder, "submitted", 1, job_id="12;cluster")
    assert store.current(folder).job_id == "12;cluster"
