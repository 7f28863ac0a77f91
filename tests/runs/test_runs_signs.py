"""What is said of ranks that run: who lags, who is silent, and who only looks like it."""

import math
import os

from runs.written import BEGAN, lived, prepared, signed, trained

from hpcdl.run_folder import RunFolder
from hpcdl.runs.record import Attempt, RunState
from hpcdl.runs.reports.live import Watcher
from hpcdl.runs.reports.signs import Sign, signs, troubles
from hpcdl.telemetry import Heartbeat, StepRecord, append

NOW = 1_000_000.0


def beat(run: RunFolder, rank: int, step: int, at: float, attempt: int = 1) -> None:
    """A heartbeat of a rank, written so many seconds after ``NOW``."""
    sign = Heartbeat(
        rank, f"n{rank}", 3, step, "pipeline", "", waiting=False, moves=9, still=0.0, patience=None
    )
    path = signed(run, attempt, sign)
    os.utime(path, (NOW + at, NOW + at))


def record(run: RunFolder, rank: int, step: int, at: float, attempt: int) -> None:
    run.metrics.mkdir(exist_ok=True)
    path = run.rank_metrics(rank)
    append(path, StepRecord(step, 5.0, 256, 0.1, 2560.0, attempt=attempt))
    os.utime(path, (NOW + at, NOW + at))


def told(run: RunFolder, attempt: int = 1, step_seconds: float | None = 0.1) -> list[str]:
    return troubles(signs(run, attempt, 2), step_seconds)


def test_ranks_of_fast_steps_do_not_lag_because_their_beats_lie_apart(tmp_path):
    """Both are at step 100, 0.1 s a step; one wrote its heartbeat 3.8 s before the other."""
    run = RunFolder(tmp_path)
    for rank, step, at in ((0, 100, 0.0), (1, 62, -3.8)):
        beat(run, rank, step, at)
    assert told(run) == []
    for rank in range(2):
        record(run, rank, 100, 0.05 * rank, attempt=1)
    assert [sign.step for sign in signs(run, 1, 2)] == [100, 100]
    assert told(run) == []


def test_a_rank_whose_beat_is_older_than_its_first_step_after_a_resume_does_not_lag(tmp_path):
    """Rank 0 told of step 21, which is the first of its attempt; the others have not told of it yet."""
    run = RunFolder(tmp_path)
    beat(run, 0, 21, 0.0, attempt=2)
    beat(run, 1, 0, -0.2, attempt=2)
    record(run, 1, 20, -300.0, attempt=1)
    assert [sign.step for sign in signs(run, 2, 2)] == [21, 0]
    assert told(run, 2) == []


def test_records_of_an_earlier_attempt_are_no_signs_of_this_one(tmp_path):
    """Rank 1 had not beaten yet: it was silent for two hours, and rank 0, at step 0, 20 steps behind."""
    run = RunFolder(tmp_path)
    run.start(2).parent.mkdir()
    run.start(2).symlink_to("72")
    os.utime(run.start(2), (NOW - 10, NOW - 10), follow_symlinks=False)
    for rank in range(2):
        record(run, rank, 20, -7200.0, attempt=1)
    beat(run, 0, 0, 0.0, attempt=2)
    assert told(run, 2) == ["rank 1: no sign of life yet"]
    for rank in range(2):
        record(run, rank, 20, -7200.0, attempt=0)  # as written before records named their attempt
    assert told(run, 2) == ["rank 1: no sign of life yet"]


def test_a_rank_that_stands_still_while_it_beats_lags(tmp_path):
    run = RunFolder(tmp_path)
    for rank, step in ((0, 100), (1, 62)):
        beat(run, rank, step, 0.0)
        record(run, rank, step, -5.0 * rank, attempt=1)
    assert told(run) == ["rank 1: 38 steps behind"]


def test_ranks_without_heartbeats_are_judged_by_their_records(tmp_path):
    run = prepared(tmp_path)
    lived(run, 1, 0, 0, "running")
    trained(run, [5.0, 4.0])
    os.utime(run.rank_metrics(1), (1000, 1000))
    moment = Watcher(run).look(Attempt(1, "71", RunState.RUNNING), BEGAN)
    assert [sign.step for sign in moment.signs] == [2, 2]
    (trouble,) = moment.troubles
    assert trouble.startswith("rank 1: silent for")


def test_of_very_many_ranks_none_is_silent_between_two_heartbeats():
    """Of 6,000 ranks each beats once a minute: half of them were silent at any time."""
    beating = [Sign(rank, "n", 50, silent=60.0 * rank / 6000) for rank in range(6000)]
    assert troubles(beating, None) == []
    assert troubles([*beating, Sign(6000, "n", 50, silent=241.0)], None) == [
        "rank 6000: silent for 4 min 01 s"
    ]


def test_troubles_are_told_of_many_ranks_in_few_words():
    good = [Sign(rank, "n", 50) for rank in range(60)]
    assert troubles(good, 1.0) == []
    bad = [Sign(60, "n", 50, silent=90.0), Sign(61, "n", 40), Sign(62, silent=math.inf)]
    assert troubles([*good, *bad], 1.0) == [
        "rank 62: no sign of life yet",
        "rank 60: silent for 90.0 s",
        "rank 61: 10 steps behind",
    ]
    assert troubles([Sign(rank, silent=math.inf) for rank in range(4)], 1.0) == []
