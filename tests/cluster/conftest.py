"""The command line on the throw-away cluster."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.fixture
def hpcdl(slurm_cluster, tmp_path):
    """Run ``hpcdl ARGS`` as a process of its own, with this cluster as the default site."""
    environment = os.environ | slurm_cluster.env
    environment |= {"HPCDL_RUNS": str(tmp_path / "runs"), "HPCDL_SITE": str(slurm_cluster.site)}

    def call(*args):
        command = [sys.executable, "-m", "hpcdl", *map(str, args)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=200, check=False
        )

    call.environment = environment
    return call
