"""Room for points: what a queue takes, and devices where no scheduler gives each job its own."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.sites.load import load_site
from hpcdl.workflow.sweeps.batches import beside
from hpcdl.workflow.sweeps.room import fitting


@dataclass(frozen=True)
class Point:
    """What is looked at of a point."""

    run: object


def sized(ranks):
    return SimpleNamespace(
        layout=SimpleNamespace(ranks=ranks),
        experiment=SimpleNamespace(resources=SimpleNamespace(queue=None)),
    )


@pytest.fixture(scope="module")
def machine():
    """One machine with four devices and no queue."""
    site = load_site("generic-slurm")
    return site.model_copy(update={"scheduler": site.scheduler.model_copy(update={"kind": "local"})})


@pytest.mark.parametrize(
    ("sizes", "going", "at_once", "count"),
    [
        ([4, 2, 2], [], None, 1),
        ([2, 2], [4], None, 0),  # it was two: as many as fit on an empty machine, whatever was going
        ([2, 2, 2], [], None, 2),
        ([2, 2], [2], None, 1),
        ([8, 1], [], None, 1),  # more than there is, alone
        ([1, 1, 1, 1], [], 3, 3),
        ([1, 1, 1, 1], [1], 3, 2),
        ([1, 1], [1, 1, 1, 1], 3, 0),
        ([4, 4], [], 2, 1),
    ],
)
def test_points_of_a_machine_without_a_queue_have_devices_of_their_own(machine, sizes, going, at_once, count):
    members = [Point(sized(ranks)) for ranks in sizes]
    assert fitting(members, map(sized, going), at_once, machine) == members[:count]


@given(st.lists(st.integers(1, 9), min_size=1), st.integers(1, 12), st.integers(0, 12))
def test_no_device_is_taken_twice_and_something_always_runs(ranks, devices, taken):
    count = beside(ranks, devices, taken)
    assert taken + sum(ranks[:count]) <= devices or (count, taken) in ((1, 0), (0, taken))
    assert count or taken
    assert count == len(ranks) or taken + sum(ranks[: count + 1]) > devices
