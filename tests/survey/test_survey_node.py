"""What a compute node says of itself, gathered and understood."""

import contextlib
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from survey.recorded import A100, MI250X, VIRTUAL, text

from hpcdl.errors import SchedulerError
from hpcdl.survey import node, reporting
from hpcdl.units import GIB, KIB, MIB


def test_a_node_of_nvidia_gpus():
    assert (A100.cores, A100.threads_per_core, A100.numa_nodes, A100.memory) == (32, 2, 4, 527942792 * KIB)
    assert [(gpu.model, gpu.memory, gpu.numa, gpu.cores) for gpu in A100.gpus] == [
        ("NVIDIA A100-SXM4-40GB", 40960 * MIB, numa, tuple(range(first, first + 8)))
        for numa, first in ((3, 24), (2, 16), (1, 8), (0, 0))
    ]
    assert A100.tmp_is_memory is True


def test_nics_are_the_fastest_that_are_up():
    assert [(nic.name, nic.bandwidth, nic.numa) for nic in A100.nics] == [("hsn0", 25, 0), ("hsn1", 25, 3)]
    assert [nic.name for nic in MI250X.nics] == ["mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3"]
    assert A100.interface == MI250X.interface == "hsn0"


def test_a_node_of_amd_devices():
    assert (len(MI250X.gpus), MI250X.gpus[0].model) == (8, "AMD INSTINCT MI250X")
    assert MI250X.gpus[0].memory == 68702699520
    assert [gpu.numa for gpu in MI250X.gpus] == [3, 3, 1, 1, 0, 0, 2, 2]
    assert MI250X.gpus[4].cores == tuple(range(16))
    assert MI250X.tmp_is_memory is False


def test_a_virtual_machine_has_cores_and_memory_and_nothing_else():
    assert (VIRTUAL.cores, VIRTUAL.threads_per_core, VIRTUAL.gpus) == (2, 1, ())
    assert VIRTUAL.memory > GIB


def test_cores_whose_threads_are_numbered_side_by_side_are_near_no_device():
    """A POWER9 counts them 0, 4, 8, …: once a draft named core 28 of 8 cores, which no site file may."""
    said = json.loads(text("node-a100.json"))
    said["lscpu"] = "".join(f"{cpu},{cpu // 4},0,0\n" for cpu in range(32))
    said["devices"] = {bus: {"numa": "0", "cpus": "0-31"} for bus in said["devices"]}
    found = node.parse(json.dumps(said))
    assert (found.cores, found.threads_per_core) == (8, 4)
    assert [(gpu.numa, gpu.cores) for gpu in found.gpus] == [(0, ())] * 4


def test_this_machine_reports_what_can_be_read_again(tmp_path):
    """As the job does it: in a process of its own, into a file."""
    command = [sys.executable, "-m", "hpcdl.survey.reporting", str(tmp_path / "node.json")]
    subprocess.run(command, check=True)
    here = node.parse((tmp_path / "node.json").read_text())
    assert here.cores * here.threads_per_core == os.cpu_count()
    assert here.host == os.uname().nodename


def test_devices_networks_and_adapters_are_read_from_sysfs(tmp_path):
    def write(path, content):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content + "\n")

    write("sys/bus/pci/devices/0000:07:00.0/class", "0x030200")
    write("sys/bus/pci/devices/0000:07:00.0/numa_node", "3")
    write("sys/bus/pci/devices/0000:07:00.0/local_cpulist", "24-31")
    write("sys/bus/pci/devices/0000:08:00.0/class", "0x010802")
    write("sys/class/net/hsn0/speed", "200000")
    write("sys/class/net/hsn0/operstate", "up")
    write("sys/class/net/hsn0/device/numa_node", "1")
    write("sys/class/net/lo/operstate", "unknown")
    write("sys/class/infiniband/mlx5_0/ports/1/rate", "400 Gb/sec (4X NDR)")
    write("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE")
    said = reporting.report(tmp_path)
    assert said["devices"] == {"0000:07:00.0": {"numa": "3", "cpus": "24-31"}}
    assert said["networks"]["hsn0"] == {"state": "up", "speed": "200000", "numa": "1", "hardware": "yes"}
    assert said["networks"]["lo"]["hardware"] == ""
    assert said["adapters"] == {"mlx5_0": {"state": "4: ACTIVE", "rate": "400 Gb/sec (4X NDR)", "numa": ""}}
    assert said["meminfo"] == ""


@pytest.mark.parametrize(
    "line", ["", "[]", "null", "{}", "slurmstepd: error: execve(): no such file", '{"format": 1}']
)
def test_a_report_that_is_none_is_shown(line):
    with pytest.raises(SchedulerError, match="a node's report cannot be read"):
        node.parse(line)


_KEYS = sorted(json.loads(text("node-a100.json")))


@given(
    st.sampled_from(_KEYS), st.none() | st.text(max_size=20) | st.integers() | st.just({"x": {"numa": "a"}})
)
def test_a_damaged_report_is_read_or_refused(key, value):
    said = json.loads(text("node-a100.json")) | {key: value}
    with contextlib.suppress(SchedulerError):
        node.parse(json.dumps(said))
