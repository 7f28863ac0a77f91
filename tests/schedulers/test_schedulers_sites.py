"""Every site file that ships: its scripts are sound and hold what the machine wants and nothing it rejects."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from schedulers.sample import job

from hpcdl.schedulers.known import SCHEDULERS
from hpcdl.schedulers.script import render
from hpcdl.sites.site import Site
from hpcdl.spec import load

FILES = sorted((Path(__file__).parents[2] / "site_configs").glob("*.yaml"))
SITES = {path.stem: load.validate(load.read(path), Site) for path in FILES}
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
    head = [line for line in script.split("\n") if line.startswith(("#SBATCH", "#PBS"))]
    for option in machine.scheduler.forbidden:
        assert not any(option in line.split("=")[0].split(" ") for line in head), option
    for wanted in (*machine.scheduler.directives, partition.name or queue, "physics"):
        assert any(wanted in line for line in head), wanted
