"""Ten thousand values of variables and ten folders by way of every kind of script: none is changed or run.

Launchers that are not here are stood in for by programs of their names that start the ranks of one node.
"""

from __future__ import annotations

import os
import stat

import pytest
from schedulers.hostile import check, folder_names, seen_by, texts
from schedulers.sample import bash, job, prepared, site

from hpcdl.schedulers.script import render

VARIABLES, FOLDERS = 1000, 10
WAYS = [
    ("local", "fork"),
    ("slurm", "srun"),
    ("pbs", "mpiexec-pals"),
    ("pbs", "mpiexec-hydra"),
    ("pbs", "mpiexec-openmpi"),
    ("flux", "flux-run"),
    ("lsf", "jsrun"),
    ("lsf", "mpiexec-openmpi"),
]
# What follows the launcher's own options: the rank's program, which is called by its path.
_START = """#!/bin/bash
while [ "$1" != "$PROGRAM" ]; do shift; done
for rank in 0 1; do SLURM_LOCALID=$rank PALS_LOCAL_RANKID=$rank "$@"; done
"""


@pytest.fixture
def launchers(tmp_path, monkeypatch):
    """Stand-ins for launchers, before the real ones on PATH."""
    for name in ("srun", "mpiexec", "flux", "jsrun"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(_START)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")


@pytest.mark.parametrize(("kind", "launcher"), WAYS)
def test_values_and_folders_arrive_byte_for_byte_in_every_rank(tmp_path, launchers, kind, launcher):
    machine = site(
        kind, launcher, scheduler={"gpu_request": "none"}, nodes={"gpu": {"device": {"kind": "cpu"}}}
    )
    for number, name in enumerate(folder_names(FOLDERS, seed=len(kind + launcher))):
        # Flux replaces what stands in double braces, so a folder that has them is refused.
        folder = prepared(tmp_path / "runs" / (name.replace("{", "(") if kind == "flux" else name))
        values = {f"V{index}": text for index, text in enumerate(texts(VARIABLES, seed=number))}
        python = seen_by(tmp_path, number)
        environment = values | {"PROGRAM": python}
        script = render(job(folder.path, machine, python=python, environment=environment))
        ended = bash(script, folder.path)
        assert ended.returncode == 0, ended
        check(tmp_path, number, values, folder.path, ranks=2)
