"""Every site file that ships: its scripts are sound and hold what the machine wants and nothing it rejects."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from schedulers.sample import job, site

from hpcdl.errors import SiteError
from hpcdl.schedulers.known import SCHEDULERS
from hpcdl.schedulers.script import render
from hpcdl.sites.load import load_site

FILES = sorted((Path(__file__).parents[2] / "site_configs").glob("[!_]*.yaml"))
SITES = {path.stem: load_site(str(path)) for path in FILES}
WAYS_IN = [
    (name, queue)
    for name, machine in SITES.items()
    if machine.scheduler.kind in SCHEDULERS
    for queue in machine.partitions
]


@pytest.mark.parametrize(("name", "queue"), WAYS_IN)
def test_shipped_site_renders_a_sound_script_for_each_way_in(tmp_path, name, queue):
    machine = SITES[name]
    partition, node = machine.partition(queue)[1], machine.node(queue)
    work = job(
        tmp_path, machine, nodes=partition.min_nodes, ranks_per_node=node.devices, queue=queue, account="physics",
        walltime="00:10:00",
    )  # fmt: skip
    script = render(work)
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    prefix = SCHEDULERS[machine.scheduler.kind].PREFIX
    head = [line for line in script.split("\n") if line.startswith(prefix)]
    for option in machine.scheduler.forbidden:
        assert not any(option in line.split("=")[0].split(" ") for line in head), option
    for wanted in (*machine.scheduler.directives, partition.name or queue, "physics"):
        assert any(wanted in line for line in head), wanted


@pytest.mark.parametrize(
    ("kind", "launcher"), [("slurm", "srun"), ("pbs", "mpiexec-pals"), ("flux", "flux-run"), ("lsf", "jsrun")]
)
@pytest.mark.parametrize("name", ["x;y", "a b", "#c", "-p"])
def test_way_in_that_no_directive_can_hold_is_refused(tmp_path, kind, launcher, name):
    machine = site(kind, launcher, partitions={name: {"node": "gpu"}}, default_partition=name)
    with pytest.raises(SiteError, match=r"partitions: .* may hold only letters"):
        render(job(tmp_path, machine))
