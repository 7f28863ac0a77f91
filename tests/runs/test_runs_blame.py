"""A rank that could not leave a record is named by those that waited for it, or by what it last told."""

from dataclasses import replace
from signal import SIGKILL, SIGTERM

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs.written import signed

from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.blame import Evidence, describe, first_failure
from hpcdl.runs.failures.causes import Clues, cause_of
from hpcdl.runs.record import Attempt, RunState
from hpcdl.telemetry import Blamed, ExitFile, ExitRecord, Heartbeat, read_exits

SIGN = Heartbeat(
    1, "n7", 9, 12, "data", "", waiting=False, moves=9, still=0.0, patience=600.0, place="own.py:4 in f"
)


def lost(rank, blamed=None, time=2.0):
    return ExitRecord(rank, "n0", time, 1, None, "PeerLostError", "waited in vain", blamed)


def told_to_end(rank):
    return ExitRecord(rank, "n0", 3.0, 143, SIGTERM, None, "terminated by SIGTERM")


@given(st.permutations(range(6)), st.integers(1, 5))
def test_the_rank_that_most_blame_is_named_whoever_else_left_no_record(order, voices):
    """Ranks 8 and 9 left none, and 9 has more voices."""
    accused = Blamed(9, "n9", "no sign of life for 6 s"), Blamed(8, "n8", "no sign of life for 5 s")
    records = [lost(rank, accused[0] if place < voices else None) for place, rank in enumerate(order)]
    others = [lost(6, accused[1]), told_to_end(7)] if voices > 1 else [told_to_end(6), told_to_end(7)]
    found = first_failure(Evidence(1, [*records, *others], 10, signs={8: SIGN}))
    assert (found.rank, found.host, found.exit_code) == (9, "n9", 1)
    assert describe(found) == "HangError: no sign of life for 6 s"


def test_a_rank_that_failed_itself_comes_before_one_that_is_blamed():
    own = ExitRecord(3, "n3", 9.0, 1, None, "HangError", "stood still for 7 s")
    assert first_failure(Evidence(1, [lost(0, Blamed(3, "n3", "no sign of life")), own], 4)) is own


def test_a_rank_that_was_killed_has_the_host_and_the_place_of_its_last_sign_of_life():
    found = first_failure(Evidence(1, [lost(0)], 2, signs={1: SIGN}))
    assert (found.rank, found.host, found.exit_code, found.signal) == (1, "n7", 128 + SIGKILL, SIGKILL)
    assert found.reason.endswith("; last seen after step 12, data, at own.py:4 in f")
    assert first_failure(Evidence(1, [lost(0)], 2)).host == "unknown host"


@pytest.mark.parametrize(
    ("script", "code", "signal"),
    [(1, 1, None), (7, 7, None), (128 + SIGKILL, 137, SIGKILL), (None, None, None)],
)
def test_a_rank_that_was_alone_and_left_no_record_is_named_if_it_had_begun(script, code, signal):
    alone = Heartbeat(0, "n7", 9, 12, "data", "", waiting=False, moves=9, still=0.0, patience=600.0)
    found = first_failure(Evidence(script, (), 1, signs={0: alone}))
    assert (found and found.exit_code, found and found.signal) == (code, signal)
    assert first_failure(Evidence(script, (), 1)) is None


@pytest.mark.parametrize(
    ("culprit", "log"),
    [
        (
            ExitRecord(1, "n1", 1.0, 1, None, "HangError", "stood still for 7 s"),
            ["error: stood still for 7 s"],
        ),
        (ExitRecord(1, "n1", 1.0, 1, None, "HangError", "no sign of life for 7 s"), ["Timeout (0:10:00)!"]),
        (
            ExitRecord(1, "n1", 1.0, 1, reason="exit code 1, …"),
            ["Timeout (0:10:00)!", "Thread 0x7f (most recent …"],
        ),
        (ExitRecord(1, "n1", 1.0, 1, None, "HangError", "all ranks wait for each other: …"), []),
    ],
)
def test_the_cause_is_a_hang_however_it_was_found(culprit, log):
    cause = cause_of(Clues(Attempt(1, "7", RunState.FAILED, 1), culprit, [culprit], log=log))
    assert cause.kind == "hang"


def test_whom_a_rank_blames_survives_its_file(tmp_path):
    folder = RunFolder(tmp_path)
    record = lost(0, Blamed(1, "n1", "no sign of life for 6 s"))
    ExitFile(folder.rank_exit(1, 0)).write(record)
    ExitFile(folder.rank_exit(1, 2)).write(told_to_end(2))
    assert read_exits(folder.exits(1)) == [record, told_to_end(2)]
    for rank in (1, 2):
        signed(folder, 1, replace(SIGN, rank=rank))
    folder.job_exit(1).write_text('{"exit_code": 1}')
    assert store.evidence(folder, 1, 4).signs == {1: SIGN}
    folder.heartbeat(1, 1).write_text("{torn")
    assert store.evidence(folder, 1, 4).signs == {}
