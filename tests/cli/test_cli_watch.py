"""``hpcdl watch`` on a terminal: a real pseudo-terminal, a real run, at sizes that people have."""

from __future__ import annotations

import codecs
import fcntl
import math
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
import tty
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from runs.written import BEGAN, chained, lived, prepared, signed, trained

from hpcdl.cli import braille
from hpcdl.cli.frames import Size, frame
from hpcdl.cli.live import _wait_for_key, _watcher
from hpcdl.runs import store
from hpcdl.runs.record import Attempt, RunState
from hpcdl.runs.reports.live import Watcher
from hpcdl.runs.reports.signs import Sign
from hpcdl.telemetry import Heartbeat, RunEvent, append

LONG_S = 120


class Terminal:
    """A command on a pseudo-terminal of its own, and all that it wrote there."""

    def __init__(self, arguments: list[object], columns: int, lines: int) -> None:
        self._own, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = {
            key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hpcdl", *map(str, arguments)],
            stdin=other, stdout=other, stderr=other, env=environment | {"TERM": "xterm-256color"},
            start_new_session=True,
        )  # fmt: skip
        os.close(other)
        self.written, self._decoder = "", codecs.getincrementaldecoder("utf-8")("replace")

    def until(self, words: str) -> str:
        """Read until ``words`` have been written; returns all there was."""
        end = time.monotonic() + LONG_S
        while words not in plain(self.written):
            assert time.monotonic() < end, f"{words!r} did not come: {plain(self.written)[-2000:]}"
            if select.select([self._own], [], [], 0.2)[0] and not self._read():
                break
        assert words in plain(self.written), plain(self.written)[-2000:]
        return self.written

    def press(self, key: str) -> None:
        os.write(self._own, key.encode())

    def end(self) -> int:
        """Wait for its end; returns the exit code."""
        end = time.monotonic() + LONG_S
        while self.process.poll() is None:
            assert time.monotonic() < end
            if select.select([self._own], [], [], 0.2)[0]:
                self._read()
        while select.select([self._own], [], [], 0.2)[0] and self._read():
            pass
        os.close(self._own)
        return self.process.returncode

    def _read(self) -> bool:
        try:
            new = os.read(self._own, 65536)
        except OSError:  # Linux says so when the other side is closed
            return False
        self.written += self._decoder.decode(new)
        return bool(new)


def plain(text: str) -> str:
    """Without colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def screens(text: str) -> list[list[str]]:
    """The frames that were drawn on the whole screen, as lines."""
    inside = text.split("\x1b[?1049h", 1)[1].split("\x1b[?1049l", 1)[0]
    return [plain(each).replace("\r", "").split("\n") for each in inside.split("\x1b[H")[1:]]


@pytest.fixture
def running(hpcdl, tiny):
    """A run of this machine that trains until it is cancelled."""
    answer = hpcdl("submit", tiny, "--set", "training.steps=1000000", "--set", "training.optimizer.lr=1e-5")
    assert answer.code == 0, answer.err
    folder = store.find("last", store.runs_folder(None))
    yield folder
    hpcdl("cancel", folder.path)
    end = time.monotonic() + LONG_S
    while not folder.job_exit(1).exists():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 60)])
def test_a_run_is_watched_on_a_whole_screen_and_goes_on_when_one_leaves(running, hpcdl, columns, lines):
    terminal = Terminal(["watch", running.path, "--interval", "0.2"], columns, lines)
    terminal.until("tokens/s")
    terminal.until("left")
    terminal.press("x")  # says nothing
    seen = len(screens(terminal.written))
    end = time.monotonic() + LONG_S
    while len(screens(terminal.written)) < seen + 3:
        assert time.monotonic() < end
        terminal.until("running")
        terminal._read()
    terminal.press("q")
    assert terminal.end() == 0
    assert "goes on" in plain(terminal.written)
    assert "detached" in plain(terminal.written)
    for screen in screens(terminal.written):
        assert len(screen) <= lines
        assert max(map(cell_len, screen)) <= columns
    assert not store.current(running).state.over
    assert not running.job_exit(1).exists()


@pytest.mark.slow
def test_watching_ends_with_the_run_and_its_exit_code(running, hpcdl):
    terminal = Terminal(["watch", running.path, "--interval", "0.2"], 100, 30)
    terminal.until("tokens/s")
    hpcdl("cancel", running.path)
    assert terminal.end() == 5
    after = plain(terminal.written.split("\x1b[?1049l", 1)[1])
    assert "cancelled" in after
    assert "loss" in after  # the last frame stays


def test_without_a_terminal_one_is_told_what_to_use(hpcdl, tmp_path):
    refused = hpcdl("watch", chained(tmp_path).path)
    assert refused.code == 2
    assert "logs" in refused.err
    assert "--follow" in refused.err
    assert "--once" in refused.err


def test_one_look_needs_no_terminal(hpcdl, tmp_path):
    shown = hpcdl("watch", chained(tmp_path).path, "--once")
    assert shown.code == 0
    for words in ("● completed", "attempt 2 of at most 50, job 72", "step 40/6", "loss 1.0000", "MFU 25.0%"):
        assert words in shown.out, words
    assert "q detaches" not in shown.out


def drawn(moment, width=80, height=24) -> list[str]:
    return [line.plain for line in frame(moment, Size(width, height))]


def test_what_a_run_waits_for_is_shown_while_it_is_queued(tmp_path):
    run = prepared(tmp_path)
    attempt = Attempt(
        1, "77", RunState.QUEUED, reason="Resources", expected_start="2026-11-23T09:00:00", after=("other",)
    )
    text = "\n".join(drawn(Watcher(run).look(attempt, BEGAN)))
    assert "waits for other to complete; the scheduler says: Resources" in text
    assert "waits for other" in text
    assert "expected to start: 2026-11-23T09:00:00" in "\n".join(
        drawn(Watcher(run).look(attempt, BEGAN), 200)
    )


def sign(rank: int, step: int, still: float = 0.0) -> Heartbeat:
    return Heartbeat(
        rank, f"n{rank}", 3, step, "pipeline", "all_reduce", waiting=True, moves=9, still=still, patience=None
    )


def test_time_left_of_the_walltime_and_ranks_that_lag_are_shown(tmp_path):
    run = prepared(tmp_path, "training.steps=100")
    lived(run, 1, 0, 0, "running")
    trained(run, [5.0, 4.0, 3.0, 2.0])
    signed(run, 1, sign(0, 14))
    signed(run, 1, sign(1, 4, still=70.0))
    attempt = Attempt(1, "71", RunState.RUNNING)
    text = "\n".join(drawn(Watcher(run).look(attempt, BEGAN + 120)))
    assert "runs for 00:02:00, walltime left 00:03:00" in text
    assert "! rank 1: 10 steps behind" in text
    assert "rank 1 on n1: after step 4, pipeline, all_reduce for 70.0 s" in text
    assert "48.0 s left" in text  # 96 steps of half a second


def test_a_walltime_that_nobody_enforces_is_not_counted_down(tmp_path):
    """The machine one is on ends no job at its walltime; the screen stayed at a red 00:00:00 for hours."""
    run = prepared(tmp_path)
    lived(run, 1, 0, 0, "running")
    shown = "\n".join(drawn(_watcher(run).look(Attempt(1, "71", RunState.RUNNING), BEGAN + 60)))
    assert "runs for 00:01:00" in shown
    assert "walltime" not in shown


def test_nothing_is_said_of_the_ranks_of_a_program_that_gives_no_signs(tmp_path):
    run = prepared(tmp_path)
    lived(run, 1, 0, 0, "running")
    text = "\n".join(drawn(Watcher(run).look(Attempt(1, "71", RunState.RUNNING), BEGAN + 120)))
    assert "runs for 00:02:00" in text
    assert "ranks start" not in text


def test_how_long_a_run_runs_does_not_depend_on_the_clock_of_its_nodes(tmp_path):
    """That of rank 0 is two minutes behind."""
    run = prepared(tmp_path)
    lived(run, 1, 0, 0, "running")
    append(run.engine_events, RunEvent("started", BEGAN - 120, 1, {"ranks": 2}))
    moment = Watcher(run).look(Attempt(1, "71", RunState.RUNNING), BEGAN + 60)
    assert moment.ran == 60


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A moment with all that a frame can hold."""
    run = chained(tmp_path_factory.mktemp("frames"))
    run.logs(2).mkdir()
    run.rank_log(2, 0).write_text("a line of the log \x1b[2J of 学 letters " * 30 + "\n")
    run.job_log(2).write_text("the script says\n" * 9)
    signed(run, 2, sign(0, 40))
    return Watcher(run).look(Attempt(2, "72", RunState.RUNNING), BEGAN + 130)


@example(80, 24, "CUDA \x1b[2J\nerror")
@given(st.integers(20, 220), st.integers(3, 70), st.text(max_size=60))
def test_a_frame_fits_the_terminal_whatever_its_size_and_whatever_is_said(shown, width, height, words):
    """Words of a program that failed cleared the screen, and their newlines made the frame too long."""
    hostile = replace(
        shown, attempt=replace(shown.attempt, reason=words), what=words, troubles=[words],
        signs=[Sign(0, words, 40, words)],
    )  # fmt: skip
    for moment in (shown, hostile):
        lines = drawn(moment, width, height)
        assert len(lines) <= height
        assert all(cell_len(line) <= width for line in lines)
        assert not any(unicodedata.category(letter) == "Cc" for line in lines for letter in line)


def test_a_small_terminal_has_the_numbers_and_a_large_one_all(shown):
    small, large = "\n".join(drawn(shown, 80, 24)), "\n".join(drawn(shown, 200, 60))
    for words in ("● running", "step 40/6", "loss 1.0000", "walltime left", "q detaches"):
        assert words in small, words
    for words in ("4.9", "job | the script says", "rank 0 | a line of the log"):
        assert words in large, words


@pytest.fixture
def press(monkeypatch):
    """Press keys on a terminal that is this process's standard input."""
    own, other = pty.openpty()
    tty.setcbreak(other)
    with os.fdopen(own, "wb", buffering=0) as keyboard, os.fdopen(other) as screen:
        monkeypatch.setattr(sys, "stdin", screen)
        yield keyboard.write


@pytest.mark.parametrize("keys", [b"q", b"Q", b"jjq", b"q\x1b[A"])
def test_q_is_heard_among_other_keys(press, keys):
    """One key was looked at, and a q that came right after it only when the next key was pressed."""
    press(keys)
    with pytest.raises(KeyboardInterrupt):
        _wait_for_key(10.0)


def test_other_keys_neither_end_nor_shorten_the_wait(press):
    press(b"jk")
    before = time.monotonic()
    _wait_for_key(0.3)
    assert time.monotonic() - before >= 0.3


def test_a_braille_curve_has_its_highest_left_and_its_lowest_right():
    first, *_, last = braille.curve([9.0, 5.0, 4.0, 3.0, 2.0, 1.0], 3, 2)
    assert first[0] != " "
    assert first[-1] == " "
    assert last[-1] != " "


@example([1.7976931348623157e308, -9.9792015476736e291], 1, 1)
@given(st.lists(st.floats(allow_nan=True), max_size=300), st.integers(1, 40), st.integers(1, 12))
def test_a_braille_curve_has_its_size_whatever_the_values(values, width, height):
    lines = braille.curve(values, width, height)
    assert [len(line) for line in lines] == [width] * height
    finite = [value for value in values if math.isfinite(value)]
    assert any(line.strip() for line in lines) == bool(finite)
