"""Ranks find each other through a file, whatever lies there from before."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cluster.slurm import until

from hpcdl.engine import rendezvous
from hpcdl.engine.ranks import Place
from hpcdl.engine.rendezvous import meet
from hpcdl.errors import EngineError
from hpcdl.spec.experiment import Rendezvous

LOOPBACK = Rendezvous(address="loopback", timeout_seconds=20)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "lo")


def everybody(file, size, rules=LOOPBACK, absent=()):
    places = [Place(rank, rank, size, f"n{rank}") for rank in range(size) if rank not in absent]
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(meet, place, rules, file) for place in places]
        return [future.exception() or future.result() for future in futures]


def hosts(stores):
    """What every rank finds of every rank."""
    return [[store.get(f"host/{rank}").decode() for rank in range(len(stores))] for store in stores]


def test_ranks_meet_and_know_each_others_hosts(tmp_path):
    stores = everybody(tmp_path / "r" / "attempt-1.json", 4)
    assert hosts(stores) == [["n0", "n1", "n2", "n3"]] * 4


def stale(file, port):
    file.write_text(json.dumps({"address": "127.0.0.1", "port": port, "key": "of an earlier start"}))


def test_a_stale_address_where_nobody_listens_is_left_alone(tmp_path):
    file = tmp_path / "attempt-1.json"
    with socket.create_server(("127.0.0.1", 0)) as gone:
        stale(file, gone.getsockname()[1])
    assert hosts(everybody(file, 2)) == [["n0", "n1"]] * 2


def test_a_stranger_that_listens_there_and_says_nothing_holds_nobody_up(tmp_path, monkeypatch):
    """torch's store waits for its word whatever its time limit."""
    monkeypatch.setattr(rendezvous, "CONNECT_S", 1.0)
    file = tmp_path / "attempt-1.json"
    with socket.create_server(("127.0.0.1", 0)) as stranger, ThreadPoolExecutor(2) as pool:
        stale(file, stranger.getsockname()[1])
        late = pool.submit(meet, Place(1, 1, 2, "n1"), LOOPBACK, file)
        assert until(lambda: any(thread.name == "rendezvous" for thread in threading.enumerate()), 10)
        first = pool.submit(meet, Place(0, 0, 2, "n0"), LOOPBACK, file)
        assert hosts([first.result(), late.result()]) == [["n0", "n1"]] * 2


def test_a_stale_address_that_another_run_took_over_is_not_joined(tmp_path):
    """The kernel may give the port of a dead rank 0 to the store of another run on that node."""
    file, other_file = tmp_path / "attempt-1.json", tmp_path / "other.json"
    other = everybody(other_file, 1)[0]
    stale(file, other.port)
    late = [Place(rank, rank, 3, f"n{rank}") for rank in (1, 2)]
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(meet, place, LOOPBACK, file) for place in late]
        time.sleep(0.3)  # they have read the stale file by now
        first = meet(Place(0, 0, 3, "n0"), LOOPBACK, file)
        stores = [first, *(future.result() for future in futures)]
    assert hosts(stores) == [["n0", "n1", "n2"]] * 3
    assert not other.check(["host/1"])


def test_the_store_waits_for_slow_ranks_later_too(tmp_path):
    """Groups are made when models are built, which takes some ranks longer than a connection may."""
    for store in everybody(tmp_path / "a.json", 2):
        assert store.timeout.total_seconds() == LOOPBACK.timeout_seconds


def test_a_rank_that_never_comes_is_named(tmp_path):
    rules = Rendezvous(address="loopback", timeout_seconds=3)
    first = everybody(tmp_path / "a.json", 3, rules, absent=(1, 2))[0]
    assert isinstance(first, EngineError)
    assert "2 of 3 ranks never came within 3 s: 1, 2" in first.message


def test_a_rank_without_rank_0_says_where_it_looked(tmp_path):
    rules = Rendezvous(address="loopback", timeout_seconds=1)
    (alone,) = everybody(tmp_path / "a.json", 2, rules, absent=(0,))
    assert isinstance(alone, EngineError)
    assert "a.json says nothing" in alone.message


def test_a_rank_that_finds_nobody_at_the_address_says_so(tmp_path):
    rules = Rendezvous(address="loopback", timeout_seconds=1)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        stale(tmp_path / "a.json", gone.getsockname()[1])
    (alone,) = everybody(tmp_path / "a.json", 2, rules, absent=(0,))
    assert "rank 0 cannot be reached from n1" in alone.message
    assert "refused" in alone.message
