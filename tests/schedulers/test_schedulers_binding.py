"""Binding: each rank computes on its device, on the cores and over the network interface near that device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from schedulers.sample import bash, interpreter, job, prepared, site

from hpcdl.engine.ranks import Place
from hpcdl.errors import SiteError
from hpcdl.schedulers import binding, environment, launch
from hpcdl.schedulers.script import render
from hpcdl.sites.node import parse_cores
from hpcdl.units import ranges

NEAR = {"cpu_bind": "near-device"}
WHOLE = {"gpu_request": "none"}

# Eight GCDs; the first core of each L3 region is the system's (OLCF Frontier user guide 2026-07, LUMI user
# guide 2024-10). Masks: axonn-ai/sc2025-pccl-reproducer 2025-04 and Lumi-supercomputer/LUMI-AI-Guide 2026-05.
GCDS = {
    "device": {"kind": "gcd", "model": "AMD Instinct MI250X"},
    "devices": 8,
    "cores": 64,
    "reserved_cores": [0, 8, 16, 24, 32, 40, 48, 56],
    "device_cores": ["49-55", "57-63", "17-23", "25-31", "1-7", "9-15", "33-39", "41-47"],
    "device_nics": [0, 0, 1, 1, 2, 2, 3, 3],
    "links": {"nics": 4},
}
GCD_MASKS = "0xfe000000000000,0xfe00000000000000,0xfe0000,0xfe000000,0xfe,0xfe00,0xfe00000000,0xfe0000000000"

# Twelve tiles; cores 0 and 52 are the system's (argonne-lcf/user-guides docs/aurora 2026-08).
TILES = {
    "device": {"kind": "tile", "model": "Intel Data Center GPU Max 1550"},
    "devices": 12,
    "cores": 104,
    "reserved_cores": [0, 52],
    "device_cores": [f"{first}-{first + 7}" for first in (*range(1, 42, 8), *range(53, 94, 8))],
}
TILE_LIST = "list:1-8:9-16:17-24:25-32:33-40:41-48:53-60:61-68:69-76:77-84:85-92:93-100"

# Four GPUs whose order is that of the cores reversed (NERSC/sc24-dl-tutorial 2025-02; NIC mapping: PCCL, above).
REVERSED = {
    "cores": 64,
    "device_cores": ["48-63", "32-47", "16-31", "0-15"],
    "device_nics": [0, 1, 2, 3],
    "links": {"nics": 4, "nic_names": ["mlx5_0", "mlx5_1", "mlx5_2:2", "mlx5_3"]},
}


def command(tmp_path, machine, **asked):
    return launch.command(job(tmp_path, machine, **asked))


def exported(tmp_path, machine, **asked):
    return dict(environment.exports(job(tmp_path, machine, **asked)))


def with_cores(work, cores):
    """The job with so many cores a rank."""
    layout = work.run.layout.model_copy(update={"cores_per_rank": cores})
    return replace(work, run=work.run.model_copy(update={"layout": layout}))


def after(words, option):
    return words[words.index(option) + 1]


def test_masks_published_for_frontier_and_lumi_come_out(tmp_path):
    machine = site(launch=NEAR, scheduler=WHOLE, nodes={"gpu": GCDS})
    assert f"--cpu-bind=mask_cpu:{GCD_MASKS}" in command(tmp_path, machine, ranks_per_node=8)


def test_list_published_for_aurora_comes_out(tmp_path):
    machine = site("pbs", "mpiexec-pals", launch=NEAR, scheduler=WHOLE, nodes={"gpu": TILES})
    words = command(tmp_path, machine, ranks_per_node=12)
    assert after(words, "--cpu-bind") == TILE_LIST
    assert "--depth" not in words


SPELLED = {
    "srun": ["--cpu-bind=mask_cpu:0xffff,0xffff0000"],
    "mpiexec-pals": ["--cpu-bind", "list:0-15:16-31"],
    "mpiexec-hydra": [
        "-bind-to",
        f"user:{'+'.join(map(str, range(16)))},{'+'.join(map(str, range(16, 32)))}",
    ],
    "mpiexec-openmpi": ["--bind-to", "none"],
}


@pytest.mark.parametrize("launcher", SPELLED)
def test_two_ranks_of_a_whole_node_get_the_cores_of_their_two_devices_in_the_launchers_words(
    tmp_path, launcher
):
    """With the devices in reverse, so that local rank 0 has device 3 and its cores."""
    machine = site(
        "pbs",
        launcher,
        launch=NEAR | {"device_order": [3, 2, 1, 0]},
        scheduler=WHOLE,
        nodes={"gpu": REVERSED},
    )
    words = command(tmp_path, machine)
    start = words.index(SPELLED[launcher][0])
    assert words[start : start + len(SPELLED[launcher])] == SPELLED[launcher]
    assert "CUDA_VISIBLE_DEVICES=3,2" in " ".join(words)


def test_launchers_of_flux_and_lsf_have_their_words(tmp_path):
    """flux run -o cpu-affinity=map:LIST (flux-run(1)); jsrun packs tasks on the cores its resource set has."""
    near = {"launch": NEAR, "scheduler": WHOLE, "nodes": {"gpu": REVERSED}}
    flux, lsf = site("slurm", "flux-run", **near), site("slurm", "jsrun", **near)
    assert binding.cpu_bind(job(tmp_path, flux)) == "map:48-63;32-47"
    assert binding.cpu_bind(job(tmp_path, lsf)) == "packed:16"


@pytest.mark.parametrize("launcher", ["fork", "pbsdsh", "mpiexec-openmpi"])
def test_ranks_of_launchers_that_cannot_bind_are_bound_by_what_starts_them(tmp_path, launcher):
    machine = site(
        "pbs", launcher, launch=NEAR, scheduler=WHOLE | {"place": "scatter"}, nodes={"gpu": REVERSED}
    )
    words = command(tmp_path, machine)
    assert [word for word in words if "taskset" in word] == ["taskset -c 48-63", "taskset -c 32-47"]


@pytest.mark.parametrize(("text", "launcher"), [("verbose,cores", "srun"), ("numa", "mpiexec-pals")])
def test_other_words_are_the_launchers_own(tmp_path, text, launcher):
    assert binding.cpu_bind(job(tmp_path, site("pbs", launcher, launch={"cpu_bind": text}))) == text


def test_open_mpi_is_told_of_one_binding_only(tmp_path):
    """Open MPI 4.1.4 ends with mismatch-binding when it is told of PE=n and of another binding."""
    told = command(tmp_path, site("pbs", "mpiexec-openmpi", launch={"cpu_bind": "numa"}))
    assert after(told, "--map-by") == "ppr:2:node"
    assert after(command(tmp_path, site("pbs", "mpiexec-openmpi")), "--map-by") == "ppr:2:node:PE=1"


def test_fork_has_no_words_of_its_own(tmp_path):
    with pytest.raises(SiteError, match=r"site sample: launcher fork has no words for cores, so 'numa'"):
        command(tmp_path, site("local", "fork", launch={"cpu_bind": "numa"}))


@st.composite
def machines(draw):
    """A node of 1 to 8 devices with 1 to 9 cores each anywhere among its cores, some of them reserved."""
    devices, size = draw(st.integers(1, 8)), draw(st.integers(1, 9))
    cores = draw(st.permutations(range(devices * size + draw(st.integers(0, 20)))))
    lists = [cores[device * size : (device + 1) * size] for device in range(devices)]
    return {
        "devices": devices,
        "cores": len(cores),
        "reserved_cores": list(cores[devices * size :]),
        "device_cores": [",".join(map(str, own)) for own in lists],
        "device_nics": draw(st.lists(st.integers(0, 3), min_size=devices, max_size=devices)),
        "links": {"nics": 4},
    }


@given(machines(), st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_rank_has_cores_of_its_own_near_its_device_and_none_reserved(tmp_path, node, data):
    ranks = data.draw(st.integers(1, node["devices"]))
    order = data.draw(st.permutations(range(node["devices"])))
    machine = site(launch=NEAR | {"device_order": order}, scheduler=WHOLE, nodes={"gpu": node})
    (told,) = [word for word in command(tmp_path, machine, ranks_per_node=ranks) if "cpu-bind" in word]
    masks = [int(mask, 16) for mask in told.partition(":")[2].split(",")]
    bound = [{core for core in range(node["cores"]) if mask >> core & 1} for mask in masks]
    assert bound == [set(parse_cores(node["device_cores"][device])) for device in order[:ranks]]
    assert not any(one & other for one, other in combinations(bound, 2))
    assert not set.union(*bound) & set(node["reserved_cores"])


@given(machines(), st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_rank_is_mapped_to_the_interface_near_its_device(tmp_path, node, data):
    order = data.draw(st.permutations(range(node["devices"])))
    machine = site(
        launch={"nic_bind": "cray-mpich", "device_order": order}, scheduler=WHOLE, nodes={"gpu": node}
    )
    told = exported(tmp_path, machine, ranks_per_node=node["devices"])
    assert told["MPICH_OFI_NIC_POLICY"] == "USER"
    nics = (entry.split(":") for entry in told["MPICH_OFI_NIC_MAPPING"].split("; "))
    of_rank = {rank: int(nic) for nic, ranks in nics for rank in parse_cores(ranks)}
    assert of_rank == {rank: node["device_nics"][device] for rank, device in enumerate(order)}


@given(st.sets(st.integers(0, 300), min_size=1, max_size=40))
def test_a_list_of_cores_is_read_as_it_is_written(cores):
    assert parse_cores(ranges(sorted(cores))) == tuple(sorted(cores))


def test_interface_mappings_published_for_perlmutter_and_frontier_come_out(tmp_path):
    nic = {"nic_bind": "cray-mpich"}
    perlmutter = site(launch=nic | {"device_order": [3, 2, 1, 0]}, nodes={"gpu": REVERSED})
    frontier = site(launch=nic, scheduler=WHOLE, nodes={"gpu": GCDS})
    told = exported(tmp_path, perlmutter, ranks_per_node=4)
    assert told["MPICH_OFI_NIC_MAPPING"] == "0:3; 1:2; 2:1; 3:0"
    told = exported(tmp_path, frontier, ranks_per_node=8)
    assert told["MPICH_OFI_NIC_MAPPING"] == "0:0-1; 1:2-3; 2:4-5; 3:6-7"


def test_ucx_is_told_the_interface_in_each_rank(tmp_path):
    machine = site(
        "pbs", "mpiexec-openmpi", launch={"nic_bind": "ucx", "device_order": [3, 2, 1, 0]},
        scheduler=WHOLE, nodes={"gpu": REVERSED},
    )  # fmt: skip
    assert [seen(tmp_path, machine, rank, "UCX_NET_DEVICES") for rank in range(4)] == [
        "mlx5_3:1",
        "mlx5_2:2",
        "mlx5_1:1",
        "mlx5_0:1",
    ]


def test_nothing_is_told_of_interfaces_by_default(tmp_path):
    """NCCL finds the interface near its device itself."""
    machine = site(scheduler=WHOLE, nodes={"gpu": REVERSED})
    assert not any("NIC" in name or "NET" in name for name in exported(tmp_path, machine, ranks_per_node=4))
    assert "env" not in command(tmp_path, machine, ranks_per_node=4)


def seen(tmp_path, machine, rank, name, ranks=4):
    """What a variable holds in a rank: the program that places it is run as the launcher would run it."""
    words = command(tmp_path, machine, ranks_per_node=ranks)
    placing = words[words.index("bash") : words.index(sys.executable)]
    variable = placing[4]
    printed = subprocess.run(
        [*placing, "bash", "-c", f'printf %s "${name}"'],
        env={variable: str(rank), "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return printed.stdout


@pytest.mark.parametrize(
    ("model", "kind", "variable"),
    [
        ("NVIDIA A100-SXM4-40GB", "gpu", "CUDA_VISIBLE_DEVICES"),
        ("Tesla V100-SXM2-16GB", "gpu", "CUDA_VISIBLE_DEVICES"),
        ("AMD Instinct MI300A", "gpu", "HIP_VISIBLE_DEVICES"),
        ("MI250X", "gcd", "HIP_VISIBLE_DEVICES"),
        ("Intel Data Center GPU Max 1550", "tile", "ZE_AFFINITY_MASK"),
    ],
)
def test_the_variable_of_devices_is_that_of_who_makes_them(tmp_path, model, kind, variable):
    machine = site(
        launch={"device_order": [1, 0, 2, 3]}, nodes={"gpu": {"device": {"model": model, "kind": kind}}}
    )
    assert f"{variable}=1,0" in command(tmp_path, machine)


def test_a_reversed_order_gives_local_rank_0_the_last_device(tmp_path, monkeypatch):
    """The engine takes the visible device of its local rank's index: position 0 of 3,2,1,0 is device 3."""
    torch, train = pytest.importorskip("torch"), pytest.importorskip("hpcdl.engine.train")
    machine = site(launch={"device_order": [3, 2, 1, 0]}, scheduler=WHOLE)
    work = job(tmp_path, machine, ranks_per_node=4)
    (told,) = [word for word in launch.command(work) if word.startswith("CUDA_VISIBLE_DEVICES=")]
    visible = told.partition("=")[2].split(",")
    claimed = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(visible))
    monkeypatch.setattr(torch.cuda, "set_device", claimed.append)
    run = work.run.model_copy(update={"device": "cuda"})
    for rank in range(4):
        assert train.claim_device(run, Place(rank, rank, 4, "here")).index == rank
    assert [int(visible[index]) for index in claimed] == [3, 2, 1, 0] == binding.order(work)


def test_srun_that_gives_each_task_its_device_gives_it_in_the_sites_order(tmp_path):
    launched = {"gpu_visibility": "one_per_task", "device_order": [3, 2, 1, 0]}
    words = command(tmp_path, site(launch=launched), ranks_per_node=4)
    assert "--gpu-bind=map_gpu:3,2,1,0" in words
    words = command(tmp_path, site(launch=launched | {"gpu_bind": "closest"}), ranks_per_node=4)
    assert "--gpu-bind=closest" in words


def test_flux_gives_each_task_its_device_in_the_sites_order(tmp_path):
    """flux run -o gpu-affinity=map:LIST, flux-run(1)."""
    launched = {"gpu_visibility": "one_per_task"}
    words = command(tmp_path, site("flux", "flux-run", launch=launched))
    assert "--setopt=gpu-affinity=per-task" in words
    machine = site("flux", "flux-run", launch=launched | {"device_order": [3, 2, 1, 0]})
    assert "--setopt=gpu-affinity=map:3;2;1;0" in command(tmp_path, machine, ranks_per_node=4)


def test_srun_that_binds_no_device_leaves_the_picking_to_the_rank(tmp_path):
    machine = site(launch={"gpu_visibility": "one_per_task", "gpu_bind": "none"})
    assert {"--gpu-bind=none", "--gpus-per-node=4"} < set(command(tmp_path, machine, ranks_per_node=4))
    assert [seen(tmp_path, machine, rank, "CUDA_VISIBLE_DEVICES") for rank in range(4)] == [
        "0",
        "1",
        "2",
        "3",
    ]


def test_devices_asked_for_by_the_task_stay_visible_to_all_ranks(tmp_path):
    machine = site(scheduler={"gpu_request": "gpus-per-task"})
    assert "--gpu-bind=mask_gpu:0xf" in command(tmp_path, machine, ranks_per_node=4)


@pytest.mark.parametrize(
    "changes", [{"scheduler": {"gpu_request": "gpus-per-node"}}, {"partitions": {"batch": {"shared": True}}}]
)
def test_no_cores_are_named_where_only_the_scheduler_knows_which_devices_it_will_give(tmp_path, changes):
    asked = {
        "launch": NEAR | {"nic_bind": "cray-mpich"},
        "scheduler": WHOLE,
        "nodes": {"gpu": REVERSED},
    } | changes
    machine = site(**asked)
    assert not any("cpu-bind" in word for word in command(tmp_path, machine))
    assert "MPICH_OFI_NIC_MAPPING" not in exported(tmp_path, machine)
    assert any("cpu-bind" in word for word in command(tmp_path, machine, ranks_per_node=4))


def test_ranks_whose_devices_name_the_same_cores_share_them_evenly(tmp_path):
    """Eight GPUs on two sockets, cores 0-23 near four of them and 48-71 near the others (NCSA Delta, H200)."""
    node = {"devices": 8, "cores": 96, "device_cores": ["0-23"] * 4 + ["48-71"] * 4}
    machine = site("pbs", "mpiexec-pals", launch=NEAR, scheduler=WHOLE, nodes={"gpu": node})
    told = after(command(tmp_path, machine, ranks_per_node=8), "--cpu-bind")
    assert told == "list:0-5:6-11:12-17:18-23:48-53:54-59:60-65:66-71"


def test_a_rank_runs_no_more_threads_than_it_has_cores(tmp_path):
    """Two ranks could have 28 cores each, but 7 are near the device of each."""
    work = job(tmp_path, site(launch=NEAR, scheduler=WHOLE, nodes={"gpu": GCDS}))
    work = with_cores(work, 28)
    assert dict(environment.exports(work))["OMP_NUM_THREADS"] == "7"


def test_slurm_counts_the_threads_of_a_core_and_masks_name_cores(tmp_path):
    """NERSC asks for 32 CPUs a task on nodes of 64 cores with two threads each (NERSC/nersc-dl-multigpu)."""
    machine = site(launch=NEAR, nodes={"gpu": REVERSED | {"threads_per_core": 2}})
    work = job(tmp_path, machine, ranks_per_node=4)
    work = with_cores(work, 16)
    words = launch.command(work)
    assert "--cpus-per-task=32" in words
    assert "--cpu-bind=mask_cpu:0xffff000000000000,0xffff00000000,0xffff0000,0xffff" in words


WRONG = [
    ({"reserved_cores": [0, 9], "device_cores": ["1", "2", "3", "8-9"]}, "device 3 names core 9, which is one of reserved_cores"),
    ({"device_cores": ["1", "2", "3", "60-64"]}, "device 3 names core 64, but the cores are 0 to 63"),
    ({"device_cores": ["0-3", "3-4", "5", "6"]}, "devices 0 and 1 share core 3, but not all their cores"),
    ({"device_cores": ["0", "1", "2"]}, "device_cores has 3 entries for 4 devices"),
    ({"device_cores": ["0", "1", "2", "3;reboot"]}, "'3;reboot' is no list of cores; write for example 48-63 or 1-8,52"),
    ({"device_cores": ["0", "1", "2", "0-99999999999"]}, "is no list of cores"),
    ({"device_cores": ["0", "1", "2", "7-3"]}, "must name each core once, the smaller end of a range first"),
    ({"device_cores": ["0", "1", "2", "3-5,4"]}, "must name each core once"),
    ({"device_nics": [0, 1, 2, 4], "links": {"nics": 4}}, "device 3 names NIC 4, but links.nics is 4: 0 to 3"),
]  # fmt: skip


@pytest.mark.parametrize(("node", "message"), WRONG)
def test_a_map_that_names_what_is_not_there_is_refused(node, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        site(nodes={"gpu": {"cores": 64} | node})


@pytest.mark.parametrize(
    ("launched", "message"),
    [
        (NEAR, "launch.cpu_bind needs nodes.gpu.device_cores, which is not there"),
        ({"nic_bind": "cray-mpich"}, "launch.nic_bind needs nodes.gpu.device_nics, which is not there"),
        ({"nic_bind": "ucx"}, "launch.nic_bind needs nodes.gpu.device_nics, which is not there"),
    ],
)
def test_binding_by_what_the_site_does_not_say_is_refused(tmp_path, launched, message):
    with pytest.raises(SiteError, match=re.escape(f"site sample: {message}")):
        render(job(tmp_path, site(launch=launched)))


@pytest.mark.parametrize("order", [[0, 0, 1, 2], [1, 0], [4, 3, 2, 1], [0, 1, 2, 3, 4], [-1, 0, 1, 2]])
def test_an_order_that_gives_two_ranks_a_device_or_a_rank_none_is_refused(tmp_path, order):
    message = f"site sample: launch.device_order {order} must name each of the 4 devices of nodes.gpu once"
    with pytest.raises(SiteError, match=re.escape(message)):
        render(job(tmp_path, site(launch={"device_order": order})))


def test_ucx_without_names_of_interfaces_is_refused(tmp_path):
    node = {"device_nics": [0, 1, 2, 3], "links": {"nics": 4, "nic_names": ["mlx5_0"]}}
    with pytest.raises(
        SiteError, match=r"ucx needs a name for each NIC, but nodes\.gpu\.links\.nic_names has 1"
    ):
        command(tmp_path, site(launch={"nic_bind": "ucx"}, nodes={"gpu": node}), ranks_per_node=4)


def test_rank_whose_launcher_sets_no_local_rank_stops_and_says_so(tmp_path):
    machine = site("pbs", "mpiexec-pals", scheduler=WHOLE, launch={"gpu_visibility": "one_per_task"})
    words = command(tmp_path, machine)
    placing = words[words.index("bash") : words.index(sys.executable)]
    ended = subprocess.run(
        [*placing, "true"], env={"PATH": os.environ["PATH"]}, capture_output=True, check=False
    )
    assert ended.returncode != 0
    assert b"PALS_LOCAL_RANKID is not set, so this rank has no place" in ended.stderr


@pytest.mark.parametrize(
    "launcher", ["srun", "mpiexec-pals", "mpiexec-hydra", "mpiexec-openmpi", "flux-run", "jsrun"]
)
def test_the_page_shows_what_each_launcher_is_told(tmp_path, launcher):
    node = {"cores": 16, "devices": 2, "device_cores": ["0-7", "8-15"]}
    work = job(tmp_path, site("pbs", launcher, launch=NEAR, nodes={"gpu": node}))
    page = (Path(__file__).parents[2] / "docs" / "placement.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{launcher}` |")]
    shown = re.split(r"[`…]", row)[3]
    assert binding.cpu_bind(work).startswith(
        re.split(r"[ =]", shown, maxsplit=1)[1].removeprefix("cpu-affinity=")
    )


def two_cores(**changes):
    """A machine whose two devices have a core each, of those this process may use; the second comes first."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("NO BINDING TESTED: this process may use one core only")
    node = {
        "device": {"kind": "cpu"}, "devices": 2, "cores": max(cores) + 1, "device_cores": list(map(str, cores)),
    }  # fmt: skip
    return cores, site(
        launch=NEAR | {"device_order": [1, 0]}, scheduler=WHOLE, nodes={"gpu": node}, **changes
    )


AFFINITY = 'taskset -cp $$ >{0}/cores-${{RANK:-$PMI_RANK}}; echo "$OMP_NUM_THREADS" >{0}/threads-${{RANK:-$PMI_RANK}}'


def observed(tmp_path):
    return [int((tmp_path / f"cores-{rank}").read_text().rpartition(":")[2]) for rank in range(2)]


@pytest.mark.parametrize("transport", ["dist", "mpi"])
def test_forked_ranks_run_on_their_cores(tmp_path, monkeypatch, transport):
    """A script that forks has no launcher to bind for it; mpiexec on one's own machine binds nothing."""
    if transport == "mpi":
        pytest.importorskip("mpi4py")
        # The stand-in for the ranks' Python lies elsewhere than the real one, beside which mpiexec is.
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    cores, machine = two_cores(kind="local", launcher="fork")
    folder = prepared(tmp_path / "a run")
    python = interpreter(tmp_path, AFFINITY.format(tmp_path))
    ended = bash(render(job(folder.path, machine, python=python, transport=transport)), folder.path)
    assert ended.returncode == 0, (folder.job_log(1).read_text(), ended.stderr)
    assert observed(tmp_path) == cores[::-1]
    assert (tmp_path / "threads-0").read_text() == "1\n"


def test_hydra_binds_ranks_to_the_cores_it_is_told(tmp_path):
    """The real mpiexec of MPICH."""
    pytest.importorskip("mpi4py")
    cores, machine = two_cores(kind="pbs", launcher="mpiexec-hydra")
    words = command(tmp_path, machine, python=interpreter(tmp_path, AFFINITY.format(tmp_path)))
    mpiexec = Path(sys.executable).with_name("mpiexec")
    subprocess.run([str(mpiexec), *words[1:]], check=True, timeout=60, capture_output=True)
    assert observed(tmp_path) == cores[::-1]


@pytest.mark.parametrize(
    ("launcher", "words"),
    [("srun", "mask_cpu:0x3,0xc"), ("srun", "map_cpu:1,0"), ("mpiexec-pals", "list:0-1:2-3")],
)
def test_a_binding_of_the_sites_own_names_no_reserved_core(tmp_path, launcher, words):
    work = job(
        tmp_path,
        site(
            launch={"launcher": launcher, "cpu_bind": words},
            nodes={"gpu": {"cores": 64, "reserved_cores": [0]}},
        ),
    )
    with pytest.raises(SiteError, match="names reserved core 0; jobs do not get it"):
        binding.cpu_bind(work)
