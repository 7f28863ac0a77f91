"""A drafted site file is one: it is read again, passes its checks and says what nobody verified."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from survey.recorded import A100, MI250X, MIXED, PBS, PLAIN, VIRTUAL, site

from hpcdl.errors import SchedulerError
from hpcdl.sites.crosscheck import crosscheck
from hpcdl.sites.provenance import field
from hpcdl.survey.compare import compare
from hpcdl.survey.draft import Reported, Wish, draft, slug
from hpcdl.survey.seen import Host, Machine, Queue, Shape
from hpcdl.units import MIB, parse_bytes

WISH = Wish(host="login1.example.edu", date="2026-11-22")


def drafted(machine, reported=None, **wish):
    return site(draft(machine, reported, Wish(host=WISH.host, date=WISH.date, **wish)))


@pytest.mark.parametrize("machine", [PLAIN, MIXED, PBS], ids=["plain", "mixed", "pbs"])
@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("node", [None, A100, MI250X, VIRTUAL], ids=["no job", "a100", "mi250x", "virtual"])
def test_every_draft_passes_its_checks_and_is_the_machine(machine, device, node):
    reported = node and Reported(node, machine.queues[0].name)
    found = drafted(machine, reported, device=device)
    problems = [*crosscheck(found), *compare(found, machine)]
    assert [problem for problem in problems if problem.severity == "error"] == []


def test_ten_thousand_nodes_are_drafted_in_seconds():
    """As many as the largest machines have; to look at all of them for each of them takes an hour."""
    shapes = [Shape(cpus=64, memory=2**38, gpus=4), Shape(cpus=64, memory=2**38, gpus=8)]
    hosts = tuple(Host(f"n{number}", shapes[number % 5 == 0]) for number in range(10_000))
    queues = tuple(Queue(f"q{number}", frozenset(host.name for host in hosts)) for number in range(5))
    machine = Machine("slurm", "large", "23.11", hosts, queues)
    began = time.process_time()
    text = draft(machine, None, WISH)
    assert time.process_time() - began < 30
    assert site(text).partitions["q4"].max_nodes == 8_000


def test_limits_are_those_of_the_scheduler():
    partitions = drafted(MIXED).partitions
    assert list(partitions) == ["gpu", "debug", "big"]
    assert partitions["gpu"].walltime_limit(1).seconds == 2 * 86400
    assert (partitions["debug"].max_nodes, partitions["debug"].constraint) == (2, "hbm40g")
    assert (partitions["big"].min_nodes, partitions["big"].walltime) == (2, [])
    assert (partitions["gpu"].preemptible, partitions["gpu"].shared) == (True, False)
    assert drafted(PBS).partitions["routeq"].routing is True


def test_with_cpus_the_cores_compute_and_all_queues_can():
    found = drafted(MIXED, device="cpu")
    assert list(found.partitions) == ["gpu", "debug", "big", "cpu", "closed"]
    cpu = found.nodes[found.partitions["cpu"].node]
    assert (cpu.device.kind, cpu.devices, found.scheduler.gpu_request) == ("cpu", 64, "none")
    gpu = found.nodes[found.partitions["gpu"].node]
    assert (gpu.devices, gpu.usable_cores) == (62, 62)


def test_no_node_with_a_gpu_is_told_with_the_way_out():
    host = Host("c1", Shape(cpus=4, memory=2**33))
    machine = Machine("slurm", "m", "22.05", (host,), (Queue("q", frozenset({"c1"})),))
    assert list(drafted(machine).nodes) == ["cpu4"]
    with pytest.raises(SchedulerError, match="no queue of m has nodes with a gpu") as refused:
        drafted(machine, device="gpu")
    assert "--device cpu" in refused.value.hint


def test_nodes_that_never_reported_are_passed_over():
    """Of a PBS node that never came up only the name is known: its 0 CPUs once ended the draft in a crash."""
    new = [Host(f"new{number}", Shape(cpus=0, memory=0)) for number in range(2)]
    up = Host("up", Shape(cpus=8, memory=2**33))
    assert list(drafted(Machine("pbs", "m", "23", (*new, up), (Queue("q"),))).nodes) == ["cpu8"]
    with pytest.raises(SchedulerError, match="no queue of m has nodes with a cpu") as refused:
        drafted(Machine("pbs", "m", "23", tuple(new), (Queue("q"),)))
    assert "before they are up" in refused.value.hint


@pytest.mark.parametrize("most", [0, 1])
def test_a_machine_without_arrays_is_drafted_without_their_size(most):
    """``MaxArraySize=0`` once stood in the draft, which its own check then refused."""
    assert "max_array" not in draft(replace(MIXED, max_array=most), None, WISH)
    assert drafted(replace(MIXED, max_array=2)).scheduler.max_array == 2


def test_a_gpu_of_which_only_the_type_is_known_has_the_figures_of_its_data_sheet():
    node = drafted(MIXED).nodes["a100x4"]
    assert (node.device.model, node.device.peak_tflops["bf16"], node.threads_per_core) == (
        "NVIDIA A100",
        312,
        2,
    )


def test_a_gpu_that_nobody_names_is_a_placeholder_that_the_check_flags():
    found = drafted(PLAIN)
    assert found.nodes["gpux4"].device.model == "unknown"
    assert any("placeholders" in finding.message for finding in crosscheck(found))


def test_what_a_job_reported_is_in_the_draft():
    shape = Shape(cpus=64, memory=2**39, cores=32, gpus=4, gpu_type="a100")
    machine = Machine("slurm", "m", "1", (Host("n", shape),), (Queue("gpu"),))
    node = drafted(machine, Reported(A100, "gpu")).nodes["a100x4"]
    assert (node.device.model, parse_bytes(node.device.memory)) == ("NVIDIA A100-SXM4-40GB", 40960 * MIB)
    assert node.device_cores == ["24-31", "16-23", "8-15", "0-7"]
    assert node.device_numa == [3, 2, 1, 0]
    assert (node.links.nic_names, node.links.nic_bandwidth) == (["hsn0", "hsn1"], 25)
    assert node.local_storage_is_memory is True
    assert drafted(MIXED, Reported(A100, "gpu")).rendezvous.interface == "hsn0"


def test_reserved_cores_are_near_no_device():
    shape = Shape(cpus=64, memory=2**39, cores=32, gpus=4, reserved=2)
    machine = Machine("slurm", "m", "1", (Host("n", shape),), (Queue("gpu"),))
    found = drafted(machine, Reported(A100, "gpu"))
    assert found.nodes["gpux4"].device_cores == ["24-31", "16-23", "8-15", "2-7"]
    assert field(found, "nodes.gpux4.reserved_cores").unverified is True


def test_maps_of_a_node_that_the_scheduler_counts_otherwise_are_left_out():
    """The scheduler's nodes have 64 cores, the one that reported 32: its maps would name wrong ones."""
    assert drafted(MIXED, Reported(A100, "gpu")).nodes["a100x4"].device_cores == []


def test_nics_are_dealt_out_within_a_numa_node():
    eight = Machine(
        "slurm", "m", "1", (Host("n", Shape(cpus=128, memory=2**39, cores=64, gpus=8)),), (Queue("q"),)
    )
    node = drafted(eight, Reported(MI250X, "q")).nodes["gpux8"]
    assert node.device_nics == [3, 3, 1, 1, 0, 0, 2, 2]
    assert node.device.kind == "gcd"


def test_memory_is_the_schedulers_where_it_holds_jobs_to_it_else_the_nodes():
    held = drafted(MIXED, Reported(VIRTUAL, "gpu"), device="cpu")
    free = drafted(PLAIN, Reported(VIRTUAL, "batch"), device="cpu")
    assert parse_bytes(held.nodes[held.partitions["gpu"].node].host_memory) == 257000 * MIB
    assert parse_bytes(free.nodes["cpu8"].host_memory) // MIB == VIRTUAL.memory // MIB


def test_every_value_has_a_source_or_is_unverified():
    found = drafted(MIXED)
    assert (
        field(found, "nodes.a100x4.cores").source == "observed on login1.example.edu 2026-11-22 with scontrol"
    )
    assert field(found, "partitions.debug.max_nodes").unverified is False
    assert field(found, "nodes.a100x4.device.peak_tflops.bf16").unverified is True
    assert field(found, "launch.launcher").unverified is True


def test_login_nodes_are_recognised_by_their_domain():
    assert drafted(MIXED).identity.hostnames == [r"login\d+\.example\.edu"]


def test_a_name_is_made_of_what_the_machine_calls_itself():
    assert slug("Summit-2") == "summit-2"
    assert slug("_%_") == "machine"
    assert drafted(MIXED).name == "summit-2"


_WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@given(_WORDS, _WORDS, _WORDS)
def test_names_of_any_kind_survive_the_file(machine_name, host, queue):
    """What YAML might take for a number, a time or a comment: it is read again as it was."""
    shape = Shape(cpus=4, memory=2**33, cores=4)
    machine = Machine("slurm", machine_name, "1e5", (Host(host, shape),), (Queue(queue, frozenset({host})),))
    found = site(draft(machine, None, Wish(host=host, date="2026-11-22")))
    assert list(found.partitions) == [queue]
    assert (found.scheduler.flavour, found.default_partition) == ("1e5", queue)
    assert found.description.startswith(machine_name)
