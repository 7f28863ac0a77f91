"""Ranks meet without torch: one word for all when all are there, and none for strangers."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hpcdl.engine.gathering import follow, lead
from hpcdl.engine.meeting import Meeting
from hpcdl.engine.ranks import Place
from hpcdl.errors import EngineError
from hpcdl.spec.experiment import Rendezvous


def meeting(file, rank, size, seconds=20):
    rules = Rendezvous(address="loopback", timeout_seconds=seconds)
    return Meeting(Place(rank, rank, size, f"n{rank}"), rules, file)


def everybody(file, size, *, seconds=20, absent=(), word="n0 4711"):
    """What each rank hears; rank 0 hears itself."""
    ranks = [rank for rank in range(size) if rank not in absent]
    with ThreadPoolExecutor(size) as pool:
        futures = [
            pool.submit(follow, meeting(file, rank, size, seconds))
            if rank
            else pool.submit(lead, meeting(file, 0, size, seconds), word)
            for rank in ranks
        ]
        heard = [future.exception() or future.result() for future in futures]
    return [word if isinstance(each, list) else each for each in heard]


@pytest.mark.parametrize("size", [1, 2, 40])
def test_all_hear_the_word_of_rank_0(tmp_path, size):
    assert everybody(tmp_path / "r" / "a.json", size) == ["n0 4711"] * size


def test_rank_0_is_told_a_line_by_each_of_the_others_in_their_order(tmp_path):
    lines = [f"{rank} says: ü {'x' * 3000}" for rank in range(6)]
    with ThreadPoolExecutor(6) as pool:
        others = [
            pool.submit(follow, meeting(tmp_path / "a", rank, 6), lines[rank]) for rank in range(5, 0, -1)
        ]
        assert lead(meeting(tmp_path / "a", 0, 6), "go") == lines[1:]
        assert [other.result() for other in others] == ["go"] * 5


def test_nobody_hears_it_before_the_last_has_come(tmp_path):
    file = tmp_path / "a.json"
    with ThreadPoolExecutor(3) as pool:
        first = [pool.submit(lead, meeting(file, 0, 3), "go"), pool.submit(follow, meeting(file, 1, 3))]
        time.sleep(0.5)
        assert not any(future.done() for future in first)
        assert follow(meeting(file, 2, 3)) == "go"
        assert first[1].result() == "go"


def test_ranks_that_never_come_are_named_by_rank_0_and_only_there(tmp_path):
    lost, waited = everybody(tmp_path / "a.json", 4, seconds=3, absent=(1, 3))
    assert isinstance(lost, EngineError)
    assert "2 of 4 ranks never came within 3 s: 1, 3" in lost.message
    assert "rank 2 waited 3 s for the others in vain" in waited.message
    assert "rank 0's log" in waited.hint


def test_a_rank_without_rank_0_says_where_it_looked(tmp_path):
    (alone,) = everybody(tmp_path / "a.json", 2, seconds=1, absent=(0,))
    assert "a.json says nothing; rank 0 did not start, or" in alone.message
    assert alone.suspects == {}


def test_of_the_ranks_without_rank_0_the_first_of_the_second_node_notes_its_node(tmp_path, monkeypatch):
    """It was named by nobody: rank 0 is who notes the nodes of ranks that never come."""
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[0-2]")
    ends = everybody(tmp_path / "a.json", 3, seconds=1, absent=(0,))
    assert all("rank 0 did not start on n0, or" in end.message for end in ends)
    assert [end.suspects for end in ends] == [{"n0": "rank 0 never came"}, {}]


def test_an_address_of_an_earlier_try_that_another_run_took_over_is_not_joined(tmp_path):
    """The port of a dead rank 0 now belongs to another run, whose rank 1 must not be ours."""
    file, other_file = tmp_path / "a.json", tmp_path / "other.json"
    with ThreadPoolExecutor(4) as pool:
        other = pool.submit(lead, meeting(other_file, 0, 2), "other")
        while not other_file.exists():
            time.sleep(0.01)
        file.write_text(json.dumps(json.loads(other_file.read_text()) | {"key": "of an earlier try"}))
        ours = pool.submit(follow, meeting(file, 1, 2))
        time.sleep(0.5)  # it has asked there by now
        assert not other.done()
        lead(meeting(file, 0, 2), "ours")
        assert ours.result() == "ours"
        assert follow(meeting(other_file, 1, 2)) == "other"
        other.result()


def test_strangers_and_ranks_that_hang_up_do_not_disturb(tmp_path):
    file = tmp_path / "a.json"
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(lead, meeting(file, 0, 3), "go")
        while not file.exists():
            time.sleep(0.01)
        told = json.loads(file.read_text())
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"x" * 10_000, b"", f"{told['key']} 1\n".encode()):
            with socket.create_connection(("127.0.0.1", told["port"])) as stranger:
                stranger.sendall(said)
        futures = [pool.submit(follow, meeting(file, rank, 3)) for rank in (1, 2)]
        first.result()
        assert [future.result() for future in futures] == ["go", "go"]


def test_somebody_who_says_nothing_is_not_taken_for_rank_0(tmp_path):
    file = tmp_path / "a.json"
    with socket.create_server(("127.0.0.1", 0)) as mute:
        file.write_text(json.dumps({"address": "127.0.0.1", "port": mute.getsockname()[1], "key": "k"}))
        (alone,) = everybody(file, 2, seconds=1, absent=(0,))
    assert "cannot be reached from n1" in alone.message
