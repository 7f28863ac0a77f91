"""Logs are read as they grow; lines come once, whole, and survive truncation."""

import re
import resource
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs.logs import reading
from hpcdl.runs.logs.reading import Follower, Tail, attempts_with_logs, check_ranks, last_lines
from hpcdl.runs.logs.weaving import woven

NOON = 1772366400.25  # 2026-03-01T12:00:00.250+00:00


def texts(lines):
    return [line.text for line in lines]


def test_tail_gives_each_whole_line_once(tmp_path):
    path = tmp_path / "a.log"
    tail = Tail(path, 0)
    assert texts(tail.new_lines()) == []
    path.write_text("one\ntw")
    assert texts(tail.new_lines()) == ["one"]
    with path.open("a") as file:
        file.write("o\nthree")
    assert texts(tail.new_lines()) == ["two"]
    assert texts(tail.new_lines(ended=True)) == ["three"]


def test_tail_starts_again_after_truncation(tmp_path):
    """A requeued job may truncate its log."""
    path = tmp_path / "a.log"
    path.write_text("a long first attempt\n")
    tail = Tail(path, 0)
    list(tail.new_lines())
    path.write_text("second\n")
    assert texts(tail.new_lines()) == ["second"]


def test_tail_survives_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(b"\xff\xfe ok\n")
    assert texts(Tail(path, 0).new_lines())[0].endswith("ok")


def test_follower_gives_job_and_ranks_and_finds_new_files(tmp_path):
    folder = RunFolder(tmp_path)
    folder.logs(1).mkdir(parents=True)
    folder.rank_log(1, 10).write_text("ten\n")
    folder.job_log(1).write_text("job\n")
    follower = Follower(folder, 1)
    assert spoken(follower) == [(1, None, "job"), (1, 10, "ten")]
    folder.rank_log(1, 2).write_text("two\n")
    assert spoken(follower) == [(1, 2, "two")]
    assert texts(Follower(folder, 1, ranks=[2]).new_lines()) == ["two"]


def spoken(follower):
    return [(line.attempt, line.rank, line.text) for line in follower.new_lines()]


def test_follower_goes_on_with_the_next_attempts_or_not(tmp_path):
    folder = RunFolder(tmp_path)
    all_of_them, one = Follower(folder, 2), Follower(folder, 2, last=2)
    assert spoken(all_of_them) == []
    for attempt in (1, 2, 10):
        folder.logs(attempt).mkdir(parents=True)
        folder.rank_log(attempt, 0).write_text(f"{attempt}\n")
    assert spoken(all_of_them) == [(2, 0, "2"), (10, 0, "10")]
    assert spoken(one) == [(2, 0, "2")]
    assert attempts_with_logs(folder) == [1, 2, 10]


def test_a_log_that_is_replaced_by_a_longer_one_is_read_from_its_beginning(tmp_path):
    """Its size alone would not show it."""
    path = tmp_path / "a.log"
    path.write_text("first life\n")
    tail = Tail(path, 0)
    assert texts(tail.new_lines()) == ["first life"]
    (tmp_path / "new").write_text("second life\nlonger\n")
    (tmp_path / "new").replace(path)
    assert texts(tail.new_lines()) == ["second life", "longer"]


def test_a_log_that_is_copied_back_goes_on_where_it_was(tmp_path):
    """Another file with what one has read already: as after a restore, or where inodes are not kept."""
    path = tmp_path / "a.log"
    path.write_text("one\n")
    tail = Tail(path, 0)
    assert texts(tail.new_lines()) == ["one"]
    (tmp_path / "new").write_text("one\ntwo\n")
    (tmp_path / "new").replace(path)
    assert texts(tail.new_lines()) == ["two"]


def test_a_log_that_cannot_be_read_for_a_while_is_none(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("one\n")
    tail = Tail(path, 0)
    assert texts(tail.new_lines()) == ["one"]
    path.rename(tmp_path / "away")
    path.mkdir()
    assert texts(tail.new_lines(ended=True)) == []
    path.rmdir()
    (tmp_path / "away").rename(path)
    with path.open("a") as file:
        file.write("two\n")
    assert texts(tail.new_lines()) == ["two"]


def test_a_bar_that_is_redrawn_is_a_line_each_time_and_crlf_is_one_end(tmp_path):
    path = tmp_path / "a.log"
    tail = Tail(path, 0)
    path.write_bytes(b"10%\r20%\r")
    assert texts(tail.new_lines()) == ["10%"]
    path.write_bytes(b"10%\r20%\r\ndone\r\n\n\x0bodd\n")
    assert texts(tail.new_lines(ended=True)) == ["20%", "done", "", "\x0bodd"]


@given(
    st.lists(st.binary(max_size=40), max_size=8),
    st.sampled_from([1, 3, 1 << 16]),
)
def test_however_a_log_is_cut_its_lines_come_once_and_whole(pieces, block):
    """Property: bytes that are no text, ends of lines and letters cut in two at any place."""
    with tempfile.TemporaryDirectory() as place, mock.patch("hpcdl.runs.logs.reading._BLOCK", block):
        path = Path(place, "a.log")
        tail, found = Tail(path, 0), []
        for piece in pieces:
            with path.open("ab") as file:
                file.write(piece)
            found += texts(tail.new_lines())
        found += texts(tail.new_lines(ended=True))
    whole = b"".join(pieces)
    expected = re.split(rb"\r\n|\n|\r", whole)
    expected = expected[:-1] if not expected[-1] else expected
    assert found == [line.decode(errors="replace") for line in expected]


def test_a_line_without_an_end_is_given_out_in_pieces(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(b"x" * (3 << 20))
    tail = Tail(path, 0)
    lines = texts(tail.new_lines(ended=True))
    assert (sum(map(len, lines)), len(lines)) == (3 << 20, 3)


def test_more_logs_than_files_may_be_open_are_read_together(tmp_path):
    folder = RunFolder(tmp_path)
    folder.logs(1).mkdir(parents=True)
    for rank in range(300):
        folder.rank_log(1, rank).write_text(f"rank {rank}\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 50, hard))
    try:
        lines = list(woven(tail.new_lines() for tail in Follower(folder, 1).tails()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(lines) == 300


def test_a_log_without_stamps_is_read_in_time_that_grows_with_it(tmp_path, monkeypatch):
    """Of lines that end where blocks do, all that follows was read again at each block."""
    path = tmp_path / "a.log"
    path.write_bytes((b"x" * 63 + b"\n") * 20_000)
    looked = []
    first_stamp = reading._first_stamp
    monkeypatch.setattr(
        reading, "_first_stamp", lambda file, offset: looked.append(offset) or first_stamp(file, offset)
    )
    tail = Tail(path, 0)
    assert {line.time for line in tail.new_lines()} == {path.stat().st_mtime}
    assert looked == [0]
    with path.open("ab") as file:
        file.write(b"y\n")
    assert texts(tail.new_lines()) == ["y"]
    assert looked == [0, 64 * 20_000]


def test_a_stamp_far_behind_the_first_line_is_not_looked_for(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("x" * 99 + "\n" + ("y" * 63 + "\n") * 40_000 + "2026-03-01T12:00:00.250+00:00 end\n")
    first, *_, last = Tail(path, 0).new_lines()
    assert first.time == path.stat().st_mtime
    assert last.time == NOON


def test_check_ranks_names_the_ranks_there_are():
    check_ranks([3, 0], 4)
    with pytest.raises(UsageError, match="--rank 4 does not exist; this run has ranks 0 to 3"):
        check_ranks([0, 4], 4)


def test_last_lines_reads_the_end(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("\n".join(map(str, range(10_000))))
    assert last_lines(path, 2) == ["9998", "9999"]
    assert last_lines(tmp_path / "none", 2) == []
