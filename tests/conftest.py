"""What tests of several folders share."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.slurm import SlurmCluster, missing
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# A shell lets what it starts with & ignore Ctrl-C, and so would do all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Time is no property under test, and a busy machine would make it look like one. What is drawn is the same
# each time, so that a change is to blame for what fails; --hypothesis-profile=explore draws anew.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, derandomize=False)
settings.load_profile("same")


class SlurmApart(LoadScopeScheduling):
    """Where tests are spread over processes, one of them has all that is done to a Slurm; it mostly waits."""

    def _split_scope(self, nodeid):
        file = nodeid.partition("::")[0]
        on_slurm = file.startswith(("tests/cluster/", "tests/reliability/")) and "_pbs" not in file
        return "on Slurm" if on_slurm else nodeid


def pytest_xdist_make_scheduler(config, log):
    return SlurmApart(config, log)


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
