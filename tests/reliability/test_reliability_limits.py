"""Time limits, which Slurm counts in minutes: the run that is ended by its own begins before the one that is not."""

from __future__ import annotations

import time
from functools import partial

import pytest
from reliability.conftest import variables
from reliability.drill import HELD, Drill
from reliability.rows import scenario

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
slurm = partial(scenario, "Slurm")

MINUTE = "resources.walltime=00:01:00"


@pytest.fixture(scope="module")
def unwarned(matrix_cluster, tmp_path_factory):
    """A run with a minute of walltime that wants no warning, held until that is over."""
    drill = Drill(tmp_path_factory.mktemp("unwarned"), variables(matrix_cluster))
    drill.submit(MINUTE, "checkpoint.before_limit_seconds=0")
    return drill


@slurm("time limit with room to save", "Slurm warns a minute before; the run saves itself and stops")
def test_time_limit_with_room(unwarned, drill, tell):
    # Two minutes to start in: who is warned before it trains pauses after its first step.
    drill.submit("resources.walltime=00:03:00", "checkpoint.before_limit_seconds=60")
    drill.wait(lambda: drill.folder.request(1).read_text() != "", "the warning")
    drill.reaches(7)
    time.sleep(1)  # rank 0 looks for the warning once a second
    tell(drill.goes_on("paused", exit_code=0, lost=0, then="by itself"))


@slurm("time limit without room to save", "no warning was asked for; Slurm ends the job in step 8")
def test_time_limit_without_room(unwarned, tell, cluster):
    unwarned.wait(unwarned.folder.job_exit(1).exists, "the end of its walltime")
    # Slurm counts in minutes, so one must be enough to start in.
    assert unwarned.first_came_to() == HELD, "this machine is too busy to come to the eighth step in a minute"
    tell(unwarned.goes_on("timeout", cause="walltime", lost=1, then="by itself"))
