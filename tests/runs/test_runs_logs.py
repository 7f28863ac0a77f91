"""Logs are read as they grow; lines come once, whole, and survive truncation."""

import io
import tarfile

import pytest

from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import archive
from hpcdl.runs.logs import Follower, Line, Tail, check_rank, last_lines


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
    assert list(follower.new_lines()) == [Line(None, "job"), Line(10, "ten")]
    folder.rank_log(1, 2).write_text("two\n")
    assert list(follower.new_lines()) == [Line(2, "two")]
    assert texts(Follower(folder, 1, rank=2).new_lines()) == ["two"]


def test_check_rank_names_the_ranks_there_are():
    check_rank(3, 4)
    with pytest.raises(UsageError, match="ranks 0 to 3"):
        check_rank(4, 4)


def test_last_lines_reads_the_end(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("\n".join(map(str, range(10_000))))
    assert last_lines(path, 2) == ["9998", "9999"]
    assert last_lines(tmp_path / "none", 2) == []


def test_archive_holds_an_index_and_everything_but_checkpoints_and_prepared_data(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "r-1")
    large = (folder.checkpoints / "5" / "shard", folder.data / "00000a1" / "0.tokens")
    for path in (folder.resolved, folder.rank_log(1, 0), *large):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    target = tmp_path / "r.tar.gz"
    seen = []
    assert archive.pack(folder, target, lambda done, total: seen.append((done, total))) == 2
    with tarfile.open(target) as packed:
        assert sorted(packed.getnames()) == [
            "r-1/INDEX.txt",
            "r-1/logs/attempt-1/rank-00000.log",
            "r-1/resolved.json",
        ]
        index = io.TextIOWrapper(packed.extractfile("r-1/INDEX.txt")).read()
    assert "logs/attempt-1/rank-00000.log" in index
    assert seen[-1] == (2, 2)


def test_archive_to_an_impossible_place_leaves_nothing(tmp_path):
    folder = RunFolder(tmp_path / "r")
    folder.path.mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        archive.pack(folder, tmp_path / "none" / "r.tar.gz", lambda done, total: None)
