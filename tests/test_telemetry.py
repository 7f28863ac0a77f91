"""Records are whole lines; what is torn or foreign is passed over."""

from hpcdl.telemetry import ExitRecord, RunEvent, StepRecord, append, parse, read, read_exits, write_exit


def test_append_and_read_round_trip(tmp_path):
    path = tmp_path / "m.jsonl"
    records = [StepRecord(1, 5.5, 256, 0.5, 512.0), StepRecord(2, 5.0, 256, 0.5, 512.0)]
    for record in records:
        append(path, record)
    assert read(path, StepRecord) == records
    assert read(tmp_path / "none", StepRecord) == []


def test_parse_leaves_a_line_that_is_still_being_written():
    whole = b'{"kind": "a", "time": 1}\n'
    assert [event.kind for event in parse(whole + b'{"kind": "b"', RunEvent)] == ["a"]


def test_parse_passes_over_torn_and_foreign_lines_and_unknown_keys():
    content = b'garbage\n{"kind": "a", "time": 1, "new": 2}\n[1]\n{"time": 1}\n'
    assert [event.kind for event in parse(content, RunEvent)] == ["a"]


def test_exit_records_round_trip_in_rank_order(tmp_path):
    for rank in (11, 2):
        write_exit(tmp_path / f"rank-{rank:05d}.json", ExitRecord(rank, "n1", 1.0, 0))
    (tmp_path / "rank-00003.json").write_text("{")
    assert [record.rank for record in read_exits(tmp_path)] == [2, 11]
    assert not list(tmp_path.glob(".*"))
