"""The cluster on which things happen to runs, the runs that they happen to, and the page that tells of it.

``pytest tests/reliability -m "slow or not slow" --write-page`` writes the tables of docs/reliability.md anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.slurm import SlurmCluster, missing
from reliability.drill import Drill
from reliability.rows import PAGE, SCENARIOS, keep, kept, line_of, rendered

PATIENT = "KillWait=20"  # a script that ends by itself is not killed, however busy this machine is


def pytest_addoption(parser):
    parser.addoption("--write-page", action="store_true", help="write docs/reliability.md from what is seen")


def pytest_sessionstart(session):
    """What an earlier session saw is not told by this one."""
    if _writes(session.config):
        for path in _results(session.config).glob("*.json"):
            path.unlink()


def pytest_sessionfinish(session):
    if _writes(session.config):
        PAGE.write_text(rendered(PAGE.read_text(), kept(_results(session.config))))


def pytest_collection_modifyitems(items):
    for item in items:
        if "reliability" in item.path.parts[-2]:
            item.add_marker(pytest.mark.timeout(600))


def _writes(config) -> bool:
    return config.getoption("--write-page", default=False)


def _results(config) -> Path:
    return config.cache.mkdir("reliability")


@pytest.fixture(scope="session")
def matrix_cluster() -> Iterator[SlurmCluster]:
    """A Slurm of three nodes that may be broken by who mends it."""
    if reason := missing():
        pytest.skip(f"NO SLURM TESTED: {reason}")
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        SlurmCluster(Path(folder), nodes=3, dialect=PATIENT) as cluster,
    ):
        yield cluster


@pytest.fixture
def cluster(matrix_cluster, monkeypatch):
    """The same, where Slurm's commands find it; afterwards empty."""
    for name, value in matrix_cluster.env.items():
        monkeypatch.setenv(name, value)
    yield matrix_cluster
    matrix_cluster.run("scancel", "--user=root")


@pytest.fixture
def drill(cluster, tmp_path) -> Drill:
    """A run of two ranks on two nodes."""
    return Drill(tmp_path, variables(cluster))


@pytest.fixture
def wide_drill(cluster, tmp_path) -> Drill:
    """A run of four ranks on two nodes."""
    return Drill(tmp_path, variables(cluster), ranks=4)


def variables(cluster) -> dict[str, str]:
    """Under which hpcdl finds a cluster."""
    return cluster.env | {"HPCDL_SITE": str(cluster.site)}


@pytest.fixture
def tell(request):
    """Hold the row of this test's scenario against the one in the page, or keep it for that.

    Called last of all: the row of a test that fails is not kept.
    """

    def row(observed):
        scenario = SCENARIOS[request.function]
        if _writes(request.config):
            keep(_results(request.config), scenario, observed)
        else:
            assert line_of(scenario, PAGE.read_text()) == observed.line(scenario)

    return row
