"""Records are whole lines; what is torn or foreign is passed over."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.telemetry import (
    ExitFile,
    ExitRecord,
    Heartbeat,
    RunEvent,
    StepRecord,
    append,
    parse,
    read,
    read_exits,
    read_heartbeat,
    read_last,
    read_tail,
    write_heartbeat,
    write_whole,
)


def test_append_and_read_round_trip(tmp_path):
    path = tmp_path / "m.jsonl"
    records = [StepRecord(1, 5.5, 256, 0.5, 512.0), StepRecord(2, 5.0, 256, 0.5, 512.0)]
    for record in records:
        append(path, record)
    assert read(path, StepRecord) == records
    assert read(tmp_path / "none", StepRecord) == []


def test_half_a_letter_is_written_like_any_other(tmp_path):
    """It has no form in UTF-8: an event with the words of an error that had one ended the run."""
    event = RunEvent("checkpoint failed", 1.0, detail={"reason": "\udce9"})
    append(tmp_path / "events.jsonl", event)
    assert read(tmp_path / "events.jsonl", RunEvent) == [event]
    told = {
        "step": 0,
        "phase": "start",
        "at": "",
        "waiting": False,
        "moves": 0,
        "still": 0.0,
        "patience": None,
    }
    heartbeat = Heartbeat(0, "n1", 1, **told, place="own-\udce9.py:1")
    write_heartbeat(tmp_path / "heartbeat", heartbeat)
    assert read_heartbeat(tmp_path / "heartbeat") == heartbeat


def test_parse_leaves_a_line_that_is_still_being_written():
    whole = b'{"kind": "a", "time": 1}\n'
    assert [event.kind for event in parse(whole + b'{"kind": "b"', RunEvent)] == ["a"]


def test_parse_passes_over_torn_and_foreign_lines_and_unknown_keys():
    content = b'garbage\n{"kind": "a", "time": 1, "new": 2}\n[1]\n{"time": 1}\n'
    assert [event.kind for event in parse(content, RunEvent)] == ["a"]


def test_exit_records_round_trip_in_rank_order(tmp_path):
    for rank in (11, 2):
        ExitFile(tmp_path / f"rank-{rank:05d}.json").write(ExitRecord(rank, "n1", 1.0, 0))
    (tmp_path / "rank-00003.json").write_text("{")
    assert [record.rank for record in read_exits(tmp_path)] == [2, 11]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("content", ["text", "\ud800"])
def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path, content):
    """Whatever failed, its temporary file stayed: of a folder in its place, a full disk, a letter without bytes."""
    (tmp_path / "taken" / "by a folder").mkdir(parents=True)
    with pytest.raises((OSError, UnicodeEncodeError)):
        write_whole(tmp_path / "taken", content)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


LINES = st.lists(
    st.one_of(
        st.builds(
            lambda kind, width: b'{"kind": "%d", "time": 1}%b' % (kind, b" " * width),
            st.integers(0),
            st.integers(0, 9000),
        ),
        st.sampled_from([b"", b"garbage", b"[1]", b'{"time": 1}', b"x" * 5000]),
    ),
    max_size=8,
)


@given(
    LINES,
    st.sampled_from(
        [b"", b"\n", b'\n{"kind": "torn"', b'\n{"kind": "whole, but for its newline", "time": 1}']
    ),
)
def test_the_last_record_is_the_last_of_all(tmp_path_factory, lines, end):
    """However long its line is, and whatever stands around it."""
    path: Path = tmp_path_factory.mktemp("last") / "events.jsonl"
    path.write_bytes(b"\n".join(lines) + end)
    assert read_last(path, RunEvent) == (read(path, RunEvent) or [None])[-1]


def test_the_last_record_of_no_file_is_none(tmp_path):
    assert read_last(tmp_path / "none", RunEvent) is None


def read_bytes() -> int:
    """What this process has read so far, as the kernel counts it."""
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    return int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="NOT COUNTED: no /proc/self/io here")
def test_the_last_record_of_a_long_file_costs_no_reading_of_the_rest(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 6001):
        append(path, StepRecord(step, 5.0, 256, 0.5, 512.0))
    assert path.stat().st_size > 1_000_000
    before = read_bytes()
    assert read_last(path, StepRecord).step == 6000
    assert read_bytes() - before < 50_000


def test_what_stands_in_the_place_of_records_has_none_at_its_end(tmp_path):
    """A folder where a rank's metrics should be failed that rank, and then every `hpcdl status` of the run."""
    assert read_tail(tmp_path, StepRecord, 1000) == []
    assert read_last(tmp_path, StepRecord) is None


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_read_as_if_it_were_not_there(tmp_path, make):
    """A FIFO in the place of a metrics file held up `hpcdl status` and `hpcdl list` for ever."""
    path = tmp_path / "rank-00000.json"
    make(path)
    with ThreadPoolExecutor() as pool:
        answers = [
            pool.submit(read, path, StepRecord),
            pool.submit(read_tail, path, StepRecord, 1000),
            pool.submit(read_last, path, StepRecord),
            pool.submit(read_exits, tmp_path),
            pool.submit(read_heartbeat, path),
        ]
        try:
            assert [answer.result(timeout=5) for answer in answers] == [[], [], None, [], None]
        finally:
            release(path)


def release(fifo):
    """Let go whoever waits for somebody to write; to open both ends needs nobody."""
    if fifo.is_fifo():
        os.close(os.open(fifo, os.O_RDWR))
