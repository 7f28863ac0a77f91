"""How often a scheduler is asked: no more than its site allows, however many runs are watched."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from processes import running
from workflow.crowd import Clock, Slurm, end, runs

from hpcdl.runs.record import RunState
from hpcdl.workflow.states import following

MINUTES_10 = 600


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    stand_in = Slurm(tmp_path)
    monkeypatch.setenv("PATH", f"{stand_in.bin}:{os.environ['PATH']}")
    return stand_in


@pytest.mark.slow
def test_200_runs_watched_for_ten_minutes_cost_no_more_questions_than_one(slurm, tmp_path):
    """They start, train and end at moments of their own; what is counted are starts of squeue."""
    folders, clock = runs(tmp_path, 200), Clock()
    floor = following.site_of(folders[0]).scheduler.poll_seconds
    began, step = clock.time, 10
    watched = {folder: following.watch(folder, outside=clock.outside()) for folder in folders}
    last = {}
    while clock.time < began + MINUTES_10:
        passed = clock.time - began
        for number, folder in enumerate(folders, 1):
            ends = 100 + 2 * number
            slurm.say(
                str(number), "PENDING" if passed < number else "RUNNING" if passed < ends else "COMPLETED"
            )
            if passed >= ends and not folder.job_exit(1).exists():
                end(folder)
        for folder, snapshots in list(watched.items()):
            snapshot = next(snapshots, None)
            if snapshot is None:
                del watched[folder]
            else:
                last[folder] = snapshot.attempt.state
        clock.sleep(step)
    assert set(last.values()) == {RunState.COMPLETED}
    assert not watched
    assert 10 < slurm.asked <= MINUTES_10 / floor + 1


FOLLOWER = """
import sys
from pathlib import Path
from hpcdl.run_folder import RunFolder
from hpcdl.workflow.states import following
for snapshot in following.watch(RunFolder(Path(sys.argv[1])), interval_s=0.05):
    pass
print(snapshot.attempt.state.value)
"""


def test_processes_that_know_nothing_of_each_other_share_one_question(slurm, tmp_path):
    """Real processes on the real clock: squeue is started once a second, whoever asks."""
    machine = tmp_path / "machine.yaml"
    machine.write_text("extends: generic-slurm\nname: machine\nscheduler: {poll_seconds: 1}\n")
    folders = runs(tmp_path, 6, machine)
    for number in range(1, 7):
        slurm.say(str(number), "RUNNING")
    command = [sys.executable, "-c", FOLLOWER]
    with ExitStack() as all_of_them:
        followers = [
            all_of_them.enter_context(running([*command, str(each.path)], stdout=subprocess.PIPE))
            for each in folders
        ]
        until(lambda: slurm.asked >= 3)
        for number, folder in enumerate(folders, 1):
            end(folder)
            slurm.say(str(number), "COMPLETED")
        assert {follower.communicate(timeout=120)[0] for follower in followers} == {"completed\n"}
    starts = [float(line) for line in (tmp_path / "states" / "asked").read_text().split()]
    # A turn is taken before its program has started, which may take longer once than the next time: so the
    # rate is what holds, not the time between two starts.
    assert len(starts) <= starts[-1] - starts[0] + 2


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
