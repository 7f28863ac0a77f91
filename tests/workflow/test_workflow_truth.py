"""Answers that are shared say nothing that asking oneself would not have said."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from workflow.crowd import Clock, Slurm, end, runs

from hpcdl.errors import SchedulerError
from hpcdl.runs import store
from hpcdl.runs.record import Attempt, RunState, Sighting, verdict
from hpcdl.schedulers.slurm_jobs import QUERIES
from hpcdl.shell import Completed
from hpcdl.workflow.states import following
from hpcdl.workflow.states.asking import Outside

JOBS = 3
LIVES = [
    # What Slurm says one after the other (None: it has forgotten), and the exit code of the script at its end.
    (("PENDING|0", "RUNNING|0", "COMPLETING|0", "COMPLETED|0", None), 2, 0),
    (("PENDING|0", "RUNNING|0", "COMPLETING|0", "FAILED|1792", None), 2, 7),
    (("PENDING|0", "RUNNING|0", "COMPLETING|0", "TIMEOUT|0", None), 2, 0),
    (("PENDING|0", "RUNNING|0", "NODE_FAIL|15", None), None, None),
    (("PENDING|0", "CANCELLED|0", None), None, None),
    (("PENDING|0", "RUNNING|0", "PENDING|0", "RUNNING|0", "COMPLETED|0", None), 3, 0),
    (("PENDING|0", "RUNNING|0", None), 2, 0),
    # Not visible yet in the first moments.
    ((None, "RUNNING|0", "COMPLETED|0", None), 2, 0),
]


class World:
    """Jobs that live, a Slurm that answers for them, and what asking it oneself would have told when."""

    def __init__(self, folder: Path, lives) -> None:
        self.clock, self.lives, self.away = Clock(), lives, False
        self.folders = runs(folder, JOBS)
        self.at, self.last_away = [0] * JOBS, 0.0
        self.poll = following.site_of(self.folders[0]).scheduler.poll_seconds
        self.outside = Outside(self.run, lambda: self.clock.time, self.clock.sleep)
        self.watching = [
            following.watch(each, outside=self.outside) for each in (*self.folders, self.folders[0])
        ]
        self.direct: list[list[tuple[float, RunState]]] = [[] for _ in self.folders]
        self.note()

    def run(self, command):
        if self.away:
            self.last_away = self.clock.time
            return Completed(1, "", "slurm_load_jobs error: Unable to contact slurm controller")
        asked = command[-1].removeprefix("--jobs=").split(",") if command[0] == "squeue" else []
        known = {str(n): self.words(n - 1) for n in range(1, JOBS + 1)}
        lines = [f"{job_id}|{known[job_id]}|None" for job_id in asked if known[job_id]]
        return Completed(0, "\n".join(lines), "")

    def words(self, index):
        return self.lives[index][0][self.at[index]]

    def note(self):
        """Remember what asking oneself would tell of each run now."""
        for index, folder in enumerate(self.folders):
            evidence = store.evidence(folder, 1, 1)
            if self.away and evidence.script_exit is None:
                continue  # nothing new is told
            sighting = None if self.away else self.sighting(index)
            before = Attempt(1, str(index + 1), RunState.QUEUED, submitted=store.current(folder).submitted)
            told = verdict(before, sighting, evidence, self.clock.time)
            self.direct[index].append((self.clock.time, told.state))

    def sighting(self, index):
        words = self.words(index)
        report = words and QUERIES[0].parse(Completed(0, f"1|{words}|None", ""))["1"]
        return Sighting(RunState(report.state.value), report.words, report.exit_code) if report else None

    def go(self, away):
        self.away = away
        self.note()

    def live_on(self, index):
        words, ends, code = self.lives[index]
        if self.at[index] + 1 < len(words):
            self.at[index] += 1
            if self.at[index] == ends:
                end(self.folders[index], code)
        self.note()

    def pass_time(self, seconds):
        self.note()
        self.clock.sleep(seconds)
        self.note()

    def told(self, index, since):
        """Every state that asking oneself would have told from ``since`` on."""
        history = self.direct[index]
        first = max([k for k, (time, _) in enumerate(history) if time <= since], default=0)
        return {state for _, state in history[first:]}

    def check(self, index, attempt, since):
        self.note()  # who looks may have waited
        if attempt.state.over and attempt.state is not RunState.LOST:
            since = 0.0  # an end stays true
        assert attempt.state in self.told(index, since), (self.lives[index], self.at[index])

    def look(self):
        """One command of a human's."""
        try:
            attempts = following.refresh(self.folders, self.outside)
        except SchedulerError:
            assert self.clock.time - self.poll <= self.last_away
            return
        for index, attempt in enumerate(attempts):
            self.check(index, attempt, self.clock.time - self.poll)
            if not self.away and self.direct[index][-1][1].over and self.folders[index].job_exit(1).exists():
                assert attempt.state.over, (
                    "the script has ended, Slurm knows it, and the run is said to go on"
                )

    def follow(self, which):
        index = which % JOBS
        snapshot = next(self.watching[which], None)
        if snapshot is not None:
            self.check(index, snapshot.attempt, 0.0)


ACTIONS = st.one_of(
    st.tuples(st.just("live_on"), st.integers(0, JOBS - 1)),
    st.tuples(st.just("pass_time"), st.sampled_from([0.3, 3.0, 9.0, 11.0, 30.0])),
    st.tuples(st.just("follow"), st.integers(0, JOBS)),
    st.tuples(st.just("look")),
    st.tuples(st.just("go"), st.booleans()),
)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(LIVES), min_size=JOBS, max_size=JOBS), st.lists(ACTIONS, max_size=60))
def test_no_state_is_told_that_asking_oneself_would_not_have_told(lives, actions):
    before = os.environ["PATH"]
    with tempfile.TemporaryDirectory() as place:
        os.environ["PATH"] = f"{Slurm(Path(place)).bin}:{before}"
        try:
            world = World(Path(place), lives)
            for name, *how in actions:
                getattr(world, name)(*how)
        finally:
            os.environ["PATH"] = before


def test_an_answer_of_a_host_whose_clock_is_ahead_serves_no_longer_than_others(tmp_path, monkeypatch):
    """For minutes everybody else was told what that host had seen once."""
    slurm, clock = Slurm(tmp_path), Clock()
    monkeypatch.setenv("PATH", f"{slurm.bin}:/usr/bin:/bin")
    (run,) = runs(tmp_path, 1)
    slurm.say("1", "RUNNING")
    here = clock.time
    clock.time += 300
    assert following.refresh([run], clock.outside())[0].state is RunState.RUNNING
    slurm.say("1", "CANCELLED")
    clock.time = here
    assert following.refresh([run], clock.outside())[0].state is RunState.CANCELLED
