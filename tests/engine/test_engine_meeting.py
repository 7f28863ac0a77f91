"""Rank 0 publishes an address by the site's rule, and says at once when that rule gives none."""

import socket
import time

import pytest

from hpcdl.engine.meeting import Meeting, choose_interface, own_address
from hpcdl.engine.ranks import Place
from hpcdl.errors import EngineError
from hpcdl.spec.experiment import Rendezvous

LOOPBACK = Rendezvous(address="loopback")


def test_own_address_follows_the_sites_rule():
    assert own_address(LOOPBACK) == "127.0.0.1"
    assert own_address(Rendezvous(suffix=".hsn.example.org")) == socket.gethostname() + ".hsn.example.org"
    assert own_address(Rendezvous(address="interface", interface="lo")) == "127.0.0.1"


def test_own_address_of_an_unknown_interface_names_those_there_are():
    with pytest.raises(EngineError, match="hsn9") as refused:
        own_address(Rendezvous(address="interface", interface="hsn9"))
    assert "lo" in refused.value.hint


def test_own_name_that_nobody_knows_is_told_at_once_with_node_and_rule(tmp_path):
    """The suffix of another machine: every rank would wait for the whole timeout."""
    rules = Rendezvous(suffix=".no-such-network.invalid", timeout_seconds=3600)
    meeting = Meeting(Place(0, 0, 2, "n7"), rules, tmp_path / "a.json")
    began = time.monotonic()
    with pytest.raises(EngineError) as refused:
        meeting.publish(4711)
    assert time.monotonic() - began < 60
    assert "rank 0 runs on n7" in refused.value.message
    assert "rendezvous.address: hostname, suffix: .no-such-network.invalid" in refused.value.message
    assert f"'{socket.gethostname()}.no-such-network.invalid'" in refused.value.message
    assert "rendezvous.suffix" in refused.value.hint
    assert not (tmp_path / "a.json").exists()


def test_a_published_name_that_another_node_does_not_know_is_told_in_time(tmp_path):
    rules = Rendezvous(address="hostname", timeout_seconds=1)
    (tmp_path / "a.json").write_text('{"address": "n0.no-such-network.invalid", "port": 4711, "key": "k"}')

    def connect(published):
        socket.create_connection((published.address, published.port), timeout=1)

    with pytest.raises(EngineError) as refused:
        Meeting(Place(3, 1, 4, "n1"), rules, tmp_path / "a.json").find(connect)
    for words in ("rank 3", "within 1 s", "n0.no-such-network.invalid:4711", "rendezvous.address: hostname"):
        assert words in refused.value.message
    assert "cannot be reached from n1" in refused.value.message


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        (LOOPBACK, "lo"),
        (Rendezvous(interface="hsn0"), "hsn0"),
        (Rendezvous(address="interface", interface="ib0"), "ib0"),
        (Rendezvous(), None),
    ],
)
def test_the_interface_of_the_site_is_for_libraries_too_unless_the_user_chose(rules, chosen):
    environment = {"NCCL_SOCKET_IFNAME": "eth9"}
    choose_interface(rules, environment)
    assert environment["NCCL_SOCKET_IFNAME"] == "eth9"
    assert environment.get("GLOO_SOCKET_IFNAME") == chosen
