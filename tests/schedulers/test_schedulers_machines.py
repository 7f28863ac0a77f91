"""What the scripts of each machine must hold and must not: rules of its site that cost a job when they are broken."""

from __future__ import annotations

import re

import pytest
from schedulers.goldens import MACHINES, scripts

from hpcdl.sites.conditions import Known, holds
from hpcdl.sites.node import parse_cores

SCRIPTS = {(path.parent.name, path.stem): text for path, text in scripts()}
SIZES = ("one", "two", "many")


def asks(name: str, size: str) -> list[str]:
    """The directives of a script and the command that starts its ranks."""
    lines = SCRIPTS[name, size].splitlines()
    return [line.strip() for line in lines if re.match(r"#[A-Za-z]+:? -|\s+exec [a-z]", line)]


def exported(name: str, size: str) -> dict[str, str]:
    return dict(re.findall(r"^export ([A-Za-z_0-9]+)=(.*)$", SCRIPTS[name, size], re.MULTILINE))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["vista", "lonestar6", "horizon"])
def test_tacc_is_asked_for_no_device_and_no_memory(name, size):
    """Slurm there rejects any script with one of these."""
    assert not re.search(r"--(gres|gpus|mem|export)\b", "\n".join(asks(name, size)))


@pytest.mark.parametrize("size", SIZES)
def test_marenostrum_is_asked_for_20_cores_a_device_and_for_no_memory(size):
    asked = "\n".join(asks("marenostrum5", size))
    assert "#SBATCH --cpus-per-task=20\n" in asked
    assert "--gres=gpu:4" in asked
    assert "--mem" not in asked


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["frontier", "lumi-g"])
def test_a_node_that_keeps_eight_cores_is_asked_for_56(name, size):
    """On LUMI a job that asks for 64 waits for ever."""
    tasks, cores = (
        int(re.search(rf"#SBATCH --{option}=(\d+)", SCRIPTS[name, size])[1])
        for option in ("ntasks-per-node", "cpus-per-task")
    )
    assert (tasks, cores) == (8, 7)


def test_lumi_binds_to_the_masks_of_its_guide():
    """Lumi-supercomputer/LUMI-AI-Guide, 05-multi-gpu-and-node, 2026-05."""
    masks = "0xfe000000000000,0xfe00000000000000,0xfe0000,0xfe000000,0xfe,0xfe00,0xfe00000000,0xfe0000000000"
    assert f"--cpu-bind=mask_cpu:{masks} " in SCRIPTS["lumi-g", "two"]
    assert exported("lumi-g", "two")["MPICH_OFI_NIC_MAPPING"] == "'0:0-1; 1:2-3; 2:4-5; 3:6-7'"


def test_aurora_binds_to_the_cores_of_its_guide():
    """docs/aurora/running-jobs-aurora.md of argonne-lcf/user-guides, 2026-08."""
    cores = "1-8:9-16:17-24:25-32:33-40:41-48:53-60:61-68:69-76:77-84:85-92:93-100"
    assert f"--cpu-bind list:{cores} " in SCRIPTS["aurora", "two"]


@pytest.mark.parametrize("which", SCRIPTS, ids="-".join)
def test_no_rank_is_bound_to_a_core_of_the_system(which):
    script, node = SCRIPTS[which], MACHINES[which[0]].node(None)
    masks = re.search(r"mask_cpu:([0-9a-fx,]+)", script)
    bound = [int(mask, 16) for mask in masks[1].split(",")] if masks else []
    lists = re.search(r"--cpu-bind list:(\S+)", script)
    bound += [sum(1 << core for core in parse_cores(text)) for text in lists[1].split(":")] if lists else []
    assert not any(mask >> core & 1 for mask in bound for core in node.reserved_cores)
    assert not any(mask >> node.cores for mask in bound)


@pytest.mark.parametrize(("name", "filesystems"), [("polaris", "home:eagle"), ("aurora", "home:flare")])
def test_alcf_is_told_the_file_systems_and_the_system(name, filesystems):
    """qsub: Resource: filesystems is required to be set."""
    for size, nodes in (("one", 1), ("two", 2)):
        asked = asks(name, size)
        assert f"#PBS -l filesystems={filesystems}" in asked
        assert f"#PBS -l select={nodes}:system={name}" in asked
        assert "#PBS -l place=scatter" in asked


def test_abci_is_given_group_and_queue_and_keeps_its_cores():
    asked = asks("abci3", "two")
    assert {"#PBS -P physics", "#PBS -q rt_HF", "#PBS -l select=2:mpiprocs=8"} <= set(asked)


def test_alliance_is_asked_for_typed_devices_and_no_partition():
    assert "#SBATCH --gpus=a100:8" in asks("narval", "two")
    assert "#SBATCH --gpus=h100:8" in asks("fir", "two")
    assert not any(
        "--partition" in line or "--qos" in line for name in ("narval", "fir") for line in asks(name, "two")
    )


def test_one_partition_of_two_kinds_of_devices_is_asked_by_type():
    assert "#SBATCH --gpus-per-node=a100:4" in asks("zaratan", "two")
    assert MACHINES["zaratan"].partitions["gpu-h100"].gpu_type == "h100"


def test_frontier_and_el_capitan_turn_off_what_alt_read_needs_off():
    assert "#SBATCH --network=disable_rdzv_get" in asks("frontier", "two")
    assert exported("frontier", "two")["FI_CXI_RDZV_PROTO"] == "alt_read"
    for name in ("elcapitan", "tuolumne"):
        assert "--setattr=rdzv_get_en=0" in asks(name, "two")[-1]
        assert exported(name, "two")["FI_CXI_RDZV_PROTO"] == "alt_read"


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("juwels-booster", "i"), ("jupiter", ""), ("polaris", ".hsn.cm.polaris.alcf.anl.gov"), ("aurora", ".hsn.cm.aurora.alcf.anl.gov")],
)  # fmt: skip
def test_ranks_meet_at_the_name_that_the_fabric_knows(name, suffix):
    assert MACHINES[name].rendezvous.suffix == suffix


@pytest.mark.parametrize("name", sorted({name for name, _ in SCRIPTS}))
def test_a_job_of_one_node_is_told_nothing_of_the_fabric(name):
    """A network plugin that is forced where no fabric is set up fails, on Frontier for one."""
    machine = MACHINES[name]
    vendor = machine.node(None).device.vendor
    alone, pair = Known(1, vendor), Known(2, vendor)
    only = {
        entry.name: entry.value
        for entry in machine.environment
        if holds(entry.when, pair) and not holds(entry.when, alone)
    }
    for variable, value in only.items():
        assert exported(name, "one").get(variable, "") != value
        assert exported(name, "two")[variable].strip("'") == value
