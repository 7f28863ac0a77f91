"""What tests of several folders share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.slurm import SlurmCluster, missing
from hypothesis import settings

# Time is no property under test, and a busy machine would make it look like one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items):
    """Where tests are spread over processes, one of them has all that is done to a cluster."""
    for item in items:
        if item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.xdist_group("slurm"))


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A real Slurm of four nodes with four fake GPUs each; SLURM_CONF points to it while tests use it."""
    if reason := missing():
        pytest.skip(f"NO SLURM TESTED: {reason}")
    # Not under tmp_path: the path of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, SlurmCluster(Path(folder)) as cluster:
        before = os.environ.get("SLURM_CONF")
        os.environ.update(cluster.env)
        yield cluster
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
