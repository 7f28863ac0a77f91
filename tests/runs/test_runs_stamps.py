"""When a line was printed is read from how it begins, in the habits of many programs."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.log import say
from hpcdl.runs.logs.stamps import said, stamp

NOON = datetime(2026, 3, 1, 12, 0, 0, 250_000, UTC).timestamp()


@pytest.mark.parametrize(
    "line",
    [
        "2026-03-01T12:00:00.250+00:00 step 1",
        "2026-03-01T13:00:00.250+01:00 step 1",
        "2026-03-01 12:00:00.25Z step 1",
        "2026-03-01 06:30:00,250-0530: step 1",
        "[2026-03-01T12:00:00.250+00:00] step 1",
    ],
)
def test_a_stamp_with_a_zone_is_one_moment(line):
    assert stamp(line) == NOON
    assert said(line) == "step 1"


def test_a_stamp_without_a_zone_is_of_this_machine():
    """As Python's logging writes it."""
    local = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOON))
    assert stamp(f"{local},250 - root - INFO - loss 2") == NOON
    assert stamp(f"[{local}] loss 2") == int(NOON)


@pytest.mark.parametrize(
    "line",
    ["", "step 1", "12:00:00 step 1", "2026-02-31T12:00:00 x", "at 2026-03-01T12:00:00", "2026-03-01 notes"],
)
def test_what_begins_otherwise_has_none(line):
    assert stamp(line) is None
    assert said(line) == line or line.startswith("2026-02-31")


def test_the_engines_own_lines_have_one(capsys):
    before = time.time()
    say("step 1")
    line = capsys.readouterr().out.rstrip("\n")
    assert before - 0.001 <= stamp(line) <= time.time()
    assert said(line) == "step 1"


def test_torchs_word_for_a_rank_does_not_count():
    assert stamp("[rank3]: 2026-03-01T12:00:00.250+00:00 step 1") == NOON
    assert said("[rank3]: Traceback (most recent call last):") == "Traceback (most recent call last):"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("I0301 %H:%M:%S.250000 4711 file.cc:10] step 1", "file.cc:10] step 1"),
        ("W20260301 %H:%M:%S.250000 file.cc:10] step 1", "file.cc:10] step 1"),
        ("[rank1]:[E301 %H:%M:%S.250000000 ProcessGroupNCCL.cpp:616] [Rank 1] Watchdog caught", None),
        (
            "[rank1]:[E0301 %H:%M:%S.250000000 ProcessGroupNCCL.cpp:616] Watchdog",
            "ProcessGroupNCCL.cpp:616] Watchdog",
        ),
    ],
)
def test_a_stamp_of_glog_has_the_year_that_is_nearest(line, words):
    """What torch's NCCL watchdog says would else go with any line above it."""
    line = time.strftime(line, time.localtime(NOON))
    assert stamp(line, near=NOON + 7e6) == (NOON if words else None)
    assert stamp(line, near=NOON - 7e6) == (NOON if words else None)
    if words:
        assert said(line) == words


def test_a_stamp_without_a_year_needs_to_know_about_when():
    assert stamp("I0301 12:00:00.250000 x") is None
    assert stamp("I0229 12:00:00.250000 x", near=NOON) is None
    new_year = datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC).timestamp()
    found = stamp(time.strftime("I%m%d %H:%M:%S.000000 x", time.localtime(new_year - 2)), near=new_year)
    assert found == new_year - 2


@given(st.text())
def test_no_line_is_too_strange(line):
    stamp(line)
    said(line)


def test_a_step_that_ranks_do_at_speeds_of_their_own_is_one_step():
    """Hardly any line of a real run was once shown together, as each rank logs its own rate."""
    lines = [f"2026-03-01T12:00:00.{rank}00+00:00 step 7 loss 2.5 {rate} tokens/s" for rank, rate in
             enumerate(("2.05k", "998", "1.2e+16", "3.1M"))]  # fmt: skip
    assert {said(line) for line in lines} == {"step 7 loss 2.5"}
    assert said("step 7 loss 2.5") != said("step 8 loss 2.5 2k tokens/s")
