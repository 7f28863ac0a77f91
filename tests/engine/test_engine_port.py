"""A held port is nobody else's, and is the program's that it is held for."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from hpcdl.engine import port

PACKAGE = Path(__file__).parents[2]
HOLD = """
import sys
from hpcdl.engine import port
held = [port.hold() for _ in range(40)]
print(*(each.getsockname()[1] for each in held), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_processes_at_once_on_one_node_never_hold_the_same_port():
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(12)
    ]
    ports = [int(word) for job in jobs for word in job.stdout.readline().split()]
    for job in jobs:
        job.communicate("")
    assert len(ports) == len(set(ports)) == 12 * 40


def test_a_held_port_is_no_outgoing_one():
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    with port.hold() as held:
        assert not first <= held.getsockname()[1] <= last


def test_ports_that_are_taken_are_passed_over():
    with socket.create_server(("127.0.0.1", 0)) as listening, port.hold() as held, port.hold() as free:
        taken = [listening.getsockname()[1], held.getsockname()[1]]
        wanted = free.getsockname()[1]
        free.close()
        with port.hold([*taken, wanted]) as found:
            assert found.getsockname()[1] == wanted


def test_where_every_port_is_outgoing_the_kernels_choice_is_held():
    all_outgoing = range(1, 65_536)
    with (
        port.hold(port.candidates(all_outgoing)) as first,
        port.hold(port.candidates(all_outgoing)) as second,
    ):
        assert first.getsockname()[1] != second.getsockname()[1]


def test_a_store_of_torch_may_listen_on_it_and_again_after_it_was_closed():
    with port.hold() as held:
        number = held.getsockname()[1]
        for _ in range(2):
            store = TCPStore("127.0.0.1", number, 1, is_master=True)
            store.set("a", "b")
            assert store.get("a") == b"b"
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", number))
            del store
            time.sleep(0.1)
