"""What is known of the machines that ship: figures that can be, limits that hold, and what each is known to refuse."""

from __future__ import annotations

from itertools import pairwise

import pytest

from hpcdl.errors import InfeasibleError, UsageError
from hpcdl.planner import plan
from hpcdl.planner.layout import check_precision, layout
from hpcdl.sites.crosscheck import crosscheck
from hpcdl.sites.load import available, load_site
from hpcdl.sites.recognise import Surroundings, recognised
from hpcdl.sites.site import Site
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.job import Resources
from hpcdl.units import format_walltime, parse_bytes, parse_walltime

MACHINES = {
    name: load_site(str(path)) for name, path in available().items() if not name.startswith("generic-")
}
NODES = {(name, key): node for name, site in MACHINES.items() for key, node in site.nodes.items()}
WAYS_IN = [(name, key) for name, site in MACHINES.items() for key in site.partitions]
SMALL = {
    "model": {"layers": 12, "hidden": 768, "heads": 12, "vocab": 50304, "sequence": 1024},
    "data": {"source": "stdlib"},
}


def limits(name: str, queue: str, **asked) -> int:
    """Nodes of a job that the machine's limits let through."""
    return layout(Resources(queue=queue, account="physics", **asked), MACHINES[name]).nodes


@pytest.mark.parametrize("name", MACHINES)
def test_values_of_a_machine_go_together(name):
    assert crosscheck(MACHINES[name]) == []


@pytest.mark.parametrize("name", [name for name, site in MACHINES.items() if site.identity.probe])
def test_a_machine_is_recognised_by_its_variables_and_no_other_is(name):
    found, _ = recognised(MACHINES.values(), Surroundings(("somewhere",), MACHINES[name].identity.probe))
    assert found is not None
    assert found.site == name


@pytest.mark.parametrize("which", NODES, ids="-".join)
def test_peaks_are_dense_and_the_smaller_the_precision_the_higher(which):
    peaks = NODES[which].device.peak_tflops
    known = [peaks[precision] for precision in ("fp32", "tf32", "bf16", "fp16") if precision in peaks]
    assert known == sorted(known)
    # Between a T4 in fp32 and a GB200 without sparsity; of an H100, sources print 1979 with it and 989 without.
    assert 8 < known[0] < known[-1] <= (2500 if which[0] == "horizon" else 989)
    assert peaks.get("bf16", peaks["fp16"]) == peaks["fp16"]


@pytest.mark.parametrize("which", NODES, ids="-".join)
def test_figures_of_a_node_are_of_the_right_size(which):
    node = NODES[which]
    assert 16 * 2**30 <= parse_bytes(node.device.memory) <= 185 * 2**30
    assert 900 <= node.device.memory_bandwidth <= 8000
    assert 11 <= node.links.inter_node <= 200
    assert node.links.intra_node < node.device.memory_bandwidth
    assert all(rate <= node.links.intra_node for rate in node.links.pairs.values())


@pytest.mark.parametrize("which", NODES, ids="-".join)
def test_pairs_name_every_two_devices_once_or_none(which):
    node = NODES[which]
    every = {f"{one}-{other}" for one in range(node.devices) for other in range(one + 1, node.devices)}
    assert set(node.links.pairs) in (set(), every)


@pytest.mark.parametrize(("name", "key"), WAYS_IN)
def test_walltime_is_known_for_every_number_of_nodes_that_a_queue_takes(name, key):
    partition = MACHINES[name].partitions[key]
    bounds = [entry.max_nodes or partition.max_nodes or 10**9 for entry in partition.walltime]
    assert all(fewer < more for fewer, more in pairwise(bounds))
    assert partition.min_nodes <= (partition.max_nodes or 10**9)
    assert partition.walltime_limit(partition.max_nodes or 1) is not None


@pytest.mark.parametrize(("name", "key"), WAYS_IN)
def test_smallest_job_of_every_queue_is_planned(name, key):
    site = MACHINES[name]
    partition, node = site.partitions[key], site.node(key)
    asked = {"nodes": partition.min_nodes, "queue": key, "account": "physics"}
    asked["walltime"] = partition.min_walltime or "00:10:00"
    precision = "bf16" if "bf16" in node.device.peak_tflops else "fp16"
    places = layout(Resources.model_validate(asked), site)
    training = {"precision": precision, "global_batch": 4 * places.ranks}
    experiment = Experiment.model_validate(SMALL | {"training": training, "resources": asked})
    found = plan(experiment, site, gpus=places.ranks)
    assert found.best is not None
    assert found.layout.ranks_per_node == node.devices


@pytest.mark.parametrize("name", ["summit", "lassen", "bridges2"])
def test_bf16_is_refused_where_there_are_no_tensor_cores_for_it(name):
    with pytest.raises(UsageError, match="bf16 is not supported by NVIDIA V100") as caught:
        check_precision("bf16", None, MACHINES[name])
    assert "fp32 or fp16" in caught.value.hint


def test_devices_a_node_need_not_be_a_power_of_two():
    assert [MACHINES[name].node(None).devices for name in ("lonestar6", "summit", "aurora", "vista")] == [
        3,
        6,
        12,
        1,
    ]


@pytest.mark.parametrize(
    ("name", "cores"),
    [("frontier", 7), ("lumi-g", 7), ("marenostrum5", 20), ("summit", 7), ("kempner", 16), ("elcapitan", 21)],
)
def test_a_rank_gets_the_cores_that_its_device_brings(name, cores):
    site = MACHINES[name]
    asked = Resources(nodes=1, account="physics", walltime="00:10:00")
    assert layout(asked, site).cores_per_rank == cores


@pytest.mark.parametrize(
    ("name", "cores"), [("marenostrum5", 20), ("delta", 16), ("narval", 12), ("deltaai", 72)]
)
def test_one_device_of_a_shared_node_brings_its_part_of_the_cores(name, cores):
    """On MareNostrum 5 any other number is refused."""
    least = MACHINES[name].partition(None)[1].min_walltime or "00:10:00"
    asked = Resources(gpus=1, account="physics", walltime=least)
    assert layout(asked, MACHINES[name]).cores_per_rank == cores


def test_what_belongs_to_the_system_is_given_to_nobody():
    """Frontier and LUMI keep eight of 64 cores, Aurora the first of each socket."""
    usable = {
        name: MACHINES[name].node(None).usable_cores for name in ("frontier", "lumi-g", "aurora", "tuolumne")
    }
    assert usable == {"frontier": 56, "lumi-g": 56, "aurora": 102, "tuolumne": 84}


@pytest.mark.parametrize(
    ("name", "queue", "nodes", "longest"),
    [
        ("frontier", "batch", 91, "02:00:00"),
        ("frontier", "batch", 92, "06:00:00"),
        ("frontier", "batch", 184, "12:00:00"),
        ("summit", "batch", 45, "02:00:00"),
        ("summit", "batch", 46, "06:00:00"),
        ("summit", "batch", 922, "24:00:00"),
        ("aurora", "prod", 1024, "12:00:00"),
        ("aurora", "prod", 1025, "18:00:00"),
        ("alps-clariden", "debug", 4, "00:22:30"),
    ],
)
def test_walltime_goes_by_nodes(name, queue, nodes, longest):
    assert limits(name, queue, nodes=nodes, walltime=longest) == nodes
    seconds = parse_walltime(longest) + 60
    longer = f"{seconds // 3600:02d}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"
    with pytest.raises(InfeasibleError, match=f"over the {format_walltime(parse_walltime(longest))}"):
        limits(name, queue, nodes=nodes, walltime=longer)


@pytest.mark.parametrize(
    ("name", "queue", "least"), [("narval", "gpu", "01:00:00"), ("perlmutter", "preempt", "02:00:00")]
)
def test_walltime_may_be_too_short(name, queue, least):
    assert limits(name, queue, nodes=1, walltime=least) == 1
    where = rf"\(.*{name}\.yaml:\d+:\d+\)"
    with pytest.raises(
        InfeasibleError, match=f"00:30:00 is under the {least} that a job in queue {queue} .*{where}"
    ):
        limits(name, queue, nodes=1, walltime="00:30:00")


def test_children_of_one_part_do_not_share_their_limits():
    """Benchpark's two LLNL machines shared one table, so that an entry for one was in both."""
    tuolumne, elcapitan = MACHINES["tuolumne"], MACHINES["elcapitan"]
    assert tuolumne.partitions["pdebug"].max_nodes == 16
    assert elcapitan.partitions["pdebug"].max_nodes == 32
    assert "plarge" not in tuolumne.partitions
    assert tuolumne.nodes == elcapitan.nodes


@pytest.mark.parametrize("name", ["vista", "lonestar6", "horizon"])
def test_tacc_is_told_of_no_node_and_of_no_device(name):
    site: Site = MACHINES[name]
    assert {"--gres", "--gpus-per-task", "--mem"} <= set(site.scheduler.forbidden)
    assert site.scheduler.gpu_request == "none"
    assert not site.policy.node_exclusion
