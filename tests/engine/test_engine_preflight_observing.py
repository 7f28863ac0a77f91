"""What a rank reads from the system about its node; the system's files are laid out as Linux has them."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.preflight import devices, observing
from hpcdl.engine.ranks import Place
from hpcdl.placement import Nic, Seat
from hpcdl.units import ranges

PLACE = Place(3, 1, 4, "n7")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def system(tmp_path):
    net, fabric = tmp_path / "class" / "net", tmp_path / "class" / "infiniband"
    for name, state, speed in (
        ("lo", "unknown", ""), ("hsn0", "up", "200000"), ("eno1", "down", "1000"), ("wifi", "up", "-1"),
    ):  # fmt: skip
        write(net / name / "operstate", f"{state}\n")
        write(net / name / "speed", f"{speed}\n")
    write(fabric / "mlx5_0" / "ports" / "1" / "state", "4: ACTIVE\n")
    write(fabric / "mlx5_0" / "ports" / "1" / "rate", "200 Gb/sec (4X HDR)\n")
    write(fabric / "mlx5_1" / "ports" / "1" / "state", "1: DOWN\n")
    write(fabric / "mlx5_2" / "ports" / "1" / "state", "4: ACTIVE\n")
    nodes = tmp_path / "devices" / "system" / "node"
    write(nodes / "node0" / "cpulist", "0-3,8-11\n")
    write(nodes / "node1" / "cpulist", "4-7,12-15\n")
    write(nodes / "node2" / "cpulist", "\n")  # memory without cores
    write(tmp_path / "bus" / "pci" / "devices" / "0000:17:00.0" / "numa_node", "1\n")
    write(tmp_path / "bus" / "pci" / "devices" / "0000:18:00.0" / "numa_node", "-1\n")
    return tmp_path


def test_interfaces_that_are_up_are_told_with_their_speed(system):
    told = observing.host(PLACE, system)
    assert told.name == "n7"
    assert set(told.nics) == {Nic("mlx5_0:1", 200.0), Nic("mlx5_2:1"), Nic("hsn0", 200.0), Nic("wifi")}


def test_a_system_that_says_nothing_is_no_error(tmp_path):
    assert observing.host(PLACE, tmp_path).nics == ()
    assert observing.numa_nodes({0, 1}, tmp_path) == ()
    assert observing.numa_of_device("0000:17:00", tmp_path) is None


@pytest.mark.parametrize(("cpus", "near"), [({0, 1}, (0,)), ({4, 12}, (1,)), ({3, 4}, (0, 1)), ({99}, ())])
def test_numa_nodes_are_those_of_the_cores(system, cpus, near):
    assert observing.numa_nodes(cpus, system) == near


def test_the_numa_node_of_a_device_is_told_where_the_system_knows_it(system):
    assert observing.numa_of_device("0000:17:00", system) == 1
    assert observing.numa_of_device("0000:18:00", system) is None


@given(st.sets(st.integers(0, 500), min_size=1))
def test_the_kernels_lists_are_read_as_they_are_written(cpus):
    assert observing.members(ranges(cpus)) == cpus


SEEN = Seat(0, 0, "n0", 1, "0", 1)
TOLD = SimpleNamespace(
    name="NVIDIA H100", total_memory=80 << 30, uuid="1234", pci_domain_id=0, pci_bus_id=0x17, pci_device_id=0
)


@pytest.fixture
def two_devices(monkeypatch):
    """What torch says where there are two; no machine of the tests has any."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: TOLD)


def test_a_device_is_told_as_torch_sees_it(two_devices):
    seat = devices.with_device(SEEN, 1, {})
    assert (seat.devices, seat.device.index, seat.device.name) == (2, 1, "NVIDIA H100")
    assert (seat.device.pci, seat.device.uuid, seat.device.memory) == ("0000:17:00", "1234", 80 << 30)


def test_slices_of_one_device_are_told_apart(two_devices):
    seats = [
        devices.with_device(SEEN, index, {"CUDA_VISIBLE_DEVICES": "MIG-aa,MIG-bb"}) for index in range(2)
    ]
    assert [seat.device.identity for seat in seats] == ["MIG-aa", "MIG-bb"]


def test_a_device_that_is_not_there_is_none(two_devices):
    seat = devices.with_device(SEEN, 2, {})
    assert (seat.devices, seat.device) == (2, None)
