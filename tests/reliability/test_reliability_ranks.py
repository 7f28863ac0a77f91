"""Ranks that end by themselves or are ended, on a real Slurm."""

from __future__ import annotations

from functools import partial

import pytest
from reliability.rows import scenario

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
slurm = partial(scenario, "Slurm")


@slurm("exit 7 in one rank", "the program of rank 3 calls `sys.exit(7)` in step 8")
def test_exit_7_of_rank_3(wide_drill, tell):
    wide_drill.trains()
    wide_drill.order(3, "exit 7")
    wide_drill.reports("failed", who=3, exit_code=7)
    tell(wide_drill.resumes(lost=1))


@slurm("kill -9 of one rank", "rank 2, the first of the second node, is sent SIGKILL in step 8")
def test_kill_9_of_rank_2(wide_drill, tell):
    wide_drill.trains()
    wide_drill.kill(2)
    wide_drill.reports("failed", who=2, exit_code=137, cause="killed")
    tell(wide_drill.resumes(lost=1))


@slurm("kill -9 of a node's processes", "all of a node: its ranks and the daemon of Slurm above them")
def test_kill_9_of_a_whole_node(wide_drill, tell, cluster):
    wide_drill.trains()
    wide_drill.kill_node("n2")
    wide_drill.let_go()  # what is left notices when it next needs the others
    wide_drill.reports("failed", who=2, exit_code=137, cause="killed")
    tell(wide_drill.resumes(lost=1))
