"""Values of variables and names of folders through a real Slurm, into every rank of two nodes, byte for byte."""

from __future__ import annotations

import pytest
from cluster.slurm import SlurmCluster, until
from schedulers.hostile import check, folder_names, seen_by, texts
from schedulers.sample import job, prepared

from hpcdl import shell
from hpcdl.schedulers import slurm
from hpcdl.schedulers.script import render
from hpcdl.sites.site import Site
from hpcdl.spec import load

pytestmark = pytest.mark.slurm
JOBS, VARIABLES = 10, 1000


def test_values_and_folders_arrive_in_every_rank_of_slurm(slurm_cluster: SlurmCluster, tmp_path):
    machine = load.validate(load.read(slurm_cluster.site), Site)
    runs = []
    for number, name in enumerate(folder_names(JOBS, seed=99)):
        folder = prepared(tmp_path / "runs" / name)
        values = {f"V{index}": text for index, text in enumerate(texts(VARIABLES, seed=1000 + number))}
        work = job(folder.path, machine, nodes=2, python=seen_by(tmp_path, number), environment=values)
        folder.script.write_text(render(work))
        slurm.submitted(shell.run(slurm.submit(folder.script), cwd=folder.path))
        runs.append((number, values, folder))
    assert until(lambda: all(folder.job_exit(1).exists() for *_, folder in runs), 60)
    for number, values, folder in runs:
        check(tmp_path, number, values, folder.path, ranks=4)
