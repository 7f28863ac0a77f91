"""Ranks find each other through a file, whatever lies there from before."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from hpcdl.engine.ranks import Place
from hpcdl.engine.rendezvous import hosts, meet, own_address
from hpcdl.errors import EngineError
from hpcdl.spec.experiment import Rendezvous

LOOPBACK = Rendezvous(address="loopback", timeout_seconds=20)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "lo")
    monkeypatch.setenv("HPCDL_START", "this one")


def everybody(file, size, rules=LOOPBACK, absent=()):
    places = [Place(rank, rank, size, f"n{rank}") for rank in range(size) if rank not in absent]
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(meet, place, rules, file) for place in places]
        return [future.exception() or future.result() for future in futures]


def test_ranks_meet_and_know_each_others_hosts(tmp_path):
    stores = everybody(tmp_path / "r" / "attempt-1.json", 4)
    assert hosts(stores[3], 4) == ["n0", "n1", "n2", "n3"]


def test_a_stale_address_of_a_dead_start_is_not_believed(tmp_path):
    """The file of an earlier start names a port where somebody else may listen now."""
    file = tmp_path / "attempt-1.json"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        file.write_text(json.dumps({"address": "127.0.0.1", "port": port, "start": "an earlier one"}))
        stores = everybody(file, 2)
    assert hosts(stores[1], 2) == ["n0", "n1"]
    assert json.loads(file.read_text())["port"] != port


def test_a_rank_that_never_comes_is_named(tmp_path):
    rules = Rendezvous(address="loopback", timeout_seconds=1)
    first = everybody(tmp_path / "a.json", 3, rules, absent=(1, 2))[0]
    assert isinstance(first, EngineError)
    assert "2 of 3 ranks never came within 1 s: 1, 2" in first.message


def test_a_rank_without_rank_0_says_where_it_looked(tmp_path):
    rules = Rendezvous(address="loopback", timeout_seconds=1)
    (alone,) = everybody(tmp_path / "a.json", 2, rules, absent=(0,))
    assert isinstance(alone, EngineError)
    assert "a.json never appeared" in alone.message


def test_own_address_follows_the_sites_rule():
    assert own_address(LOOPBACK) == "127.0.0.1"
    assert own_address(Rendezvous(suffix=".hsn.example.org")) == socket.gethostname() + ".hsn.example.org"
    assert own_address(Rendezvous(address="interface", interface="lo")) == "127.0.0.1"


def test_own_address_of_an_unknown_interface_names_those_there_are():
    with pytest.raises(EngineError, match="hsn9") as refused:
        own_address(Rendezvous(address="interface", interface="hsn9"))
    assert "lo" in refused.value.hint
