"""``hpcdl logs`` on folders as runs leave them: which lines, in which order, said by whom."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from hpcdl.cli import logs, render
from hpcdl.runs import store
from hpcdl.runs.logs.reading import Follower
from hpcdl.workflow.studies import preparing, studying

START = datetime(2026, 3, 1, tzinfo=UTC)


def line(seconds, text):
    return f"{(START + timedelta(seconds=seconds)).isoformat(timespec='milliseconds')} {text}\n"


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """A run of two ranks with two attempts, of which the second failed."""
    monkeypatch.setenv("HPCDL_RUNS", str(tmp_path / "runs"))
    (folder,) = preparing.prepare(studying.study(studying.Request(tiny)), tmp_path / "runs")
    folder.logs(2).mkdir()
    folder.rank_log(1, 0).write_text(line(0, "step 1 loss 5.0"))
    folder.rank_log(1, 1).write_text(line(0.1, "step 1 loss 5.0"))
    folder.rank_log(2, 0).write_text(line(60, "step 2 loss 4.0") + line(62, "step 3 loss nan"))
    folder.rank_log(2, 1).write_text(line(60.1, "step 2 loss 4.0") + line(64, "ended") + "ValueError: no\n")
    return folder


def test_the_newest_attempt_is_shown_in_the_order_of_time(hpcdl, run):
    shown = hpcdl("logs", "last").out.splitlines()
    assert [each.split(" | ")[0].strip() for each in shown] == ["ranks 0-1", "rank 0", "rank 1", "rank 1"]
    assert shown[-1] == "  rank 1 | ValueError: no"


def test_an_attempt_that_says_nothing_yet_hides_none_that_did(hpcdl, run):
    """Of a run whose ninth attempt was refused nothing was shown, although eight had full logs."""
    store.note(run, "refused", 3, reason="Invalid account")
    run.logs(3).mkdir()
    result = hpcdl("logs", "last")
    assert "ValueError: no" in result.out
    assert "attempt 3 has no logs (refused): these are of attempt 2" in " ".join(result.err.split())
    asked = hpcdl("logs", "last", "--attempt", "3")
    assert (asked.code, f"attempt 3 of {run.path.name} has no logs (refused)" in asked.err) == (2, True)


def test_all_shows_each_ranks_own(hpcdl, run):
    assert [each[:8] for each in hpcdl("logs", "last", "--all").out.splitlines()[:2]] == [
        "  rank 0",
        "  rank 1",
    ]


def test_ranks_an_attempt_and_the_last_lines_are_chosen(hpcdl, run):
    assert len(hpcdl("logs", "last", "--rank", "1", "--rank", "0").out.splitlines()) == 4
    assert "rank 0" not in hpcdl("logs", "last", "--rank", "1").out
    assert hpcdl("logs", "last", "--attempt", "1").out.endswith("step 1 loss 5.0\n")
    assert hpcdl("logs", "last", "--tail", "1").out == "  rank 1 | ValueError: no\n"
    assert hpcdl("logs", "last", "--tail", "0").out == ""


def test_grep_finds_lines_and_its_exit_code_says_whether(hpcdl, run):
    found = hpcdl("logs", "last", "--grep", r"loss (nan|inf)\b")
    assert (found.code, len(found.out.splitlines())) == (0, 1)
    assert "loss nan" in found.out
    nothing = hpcdl("logs", "last", "--grep", "out of memory")
    assert (nothing.code, nothing.out, nothing.err) == (1, "", "")


def test_a_bad_pattern_is_told_with_its_place(hpcdl, run):
    told = hpcdl("logs", "last", "--grep", "loss (nan")
    assert told.code == 2
    assert "--grep 'loss (nan' is no regular expression of Python: missing ), unterminated" in told.err
    assert "letter 6" in told.err
    assert r"--grep 'loss\ \(nan'" in told.err


def test_json_has_one_object_a_line_with_stable_keys(hpcdl, run):
    rows = [json.loads(each) for each in hpcdl("logs", "last", "--json").out.splitlines()]
    assert [row["rank"] for row in rows] == [0, 1, 0, 1, 1]
    assert rows[-1] == {
        "rank": 1, "text": "ValueError: no", "time": (START + timedelta(seconds=64)).timestamp(), "attempt": 2
    }  # fmt: skip


@pytest.mark.parametrize("command", ["logs last", "watch last --once", "logs last --json"])
def test_a_terminal_without_a_letter_shows_another_for_it(run, command):
    """Over ssh without a locale, or with one of long ago: each of these was "unexpected UnicodeEncodeError"."""
    run.rank_log(2, 0).write_text(line(60, "loss → 4.0 ✓ ähm"), encoding="utf-8")
    shown = subprocess.run(
        [sys.executable, "-m", "hpcdl", *command.split()],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"}, encoding="latin-1", capture_output=True, check=False,
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (0, "")
    if "--json" in command:
        assert json.loads(shown.stdout.splitlines()[0])["text"].endswith("loss → 4.0 ✓ ähm")
    else:
        assert ("loss ? 4.0 ? ähm" if "logs" in command else "% ????") in shown.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--attempt", "7"), "has no attempt 7; its newest is 2"),
        (("--rank", "2"), "--rank 2 does not exist; this run has ranks 0 to 1"),
    ],
)
def test_what_is_not_there_is_named(hpcdl, run, args, words):
    told = hpcdl("logs", "last", *args)
    assert told.code == 2
    assert words in told.err


def test_the_ranks_of_an_attempt_are_those_that_it_had(hpcdl, run):
    """A later attempt has more of them."""
    run.resolved_until(1).parent.mkdir()
    run.resolved_until(1).write_text(run.resolved.read_text())
    now = json.loads(run.resolved.read_text())
    now["layout"]["ranks_per_node"] = 4
    run.resolved.write_text(json.dumps(now))
    assert "ranks 0 to 1" in hpcdl("logs", "last", "--attempt", "1", "--rank", "3").err
    assert hpcdl("logs", "last", "--attempt", "2", "--rank", "3").code == 0


def test_colours_are_for_terminals(hpcdl, run, monkeypatch):
    assert "\033" not in hpcdl("logs", "last", "--grep", "loss").out
    monkeypatch.setattr(render, "coloured", lambda: True)
    shown = hpcdl("logs", "last", "--grep", "nan").out
    assert shown.startswith("\033[36m  rank 0 |\033[0m ")
    assert "loss \033[1;31mnan\033[0m" in shown
    assert "\033" not in hpcdl("logs", "last", "--json").out


def test_following_goes_through_attempts_and_ends_with_the_run(hpcdl, run):
    """The first attempt is followed while the second appears; the run is over when nobody knows its job."""
    for number in (1, 2):
        store.note(run, "submitted", number, job_id=f"{number}")
        store.note(run, "observed", number, state="failed")
    shown = hpcdl("logs", "last", "--follow").out.splitlines()
    assert len(shown) == 4
    run.logs(1).rename(run.path / "hidden")
    assert hpcdl("logs", "last", "--follow", "--attempt", "2").out.splitlines() == shown


def test_the_next_attempt_is_announced(run, capsys):
    logs.Screen(logs.LogChoice(tail=5), 2).show(Follower(run, 1), ended=True)
    assert capsys.readouterr().out.splitlines()[1] == "   hpcdl | attempt 2 begins"
