"""Turns: one of many, and never two."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hpcdl.runs.turns import Turn, Turns

RACER = """
import sys
from pathlib import Path
from hpcdl.runs.turns import Turns
turns = Turns(Path(sys.argv[1]))
while (last := turns.newest()).number < 300:
    if turns.take(last, 1.0):
        print(last.number + 1)
"""


def test_of_many_processes_that_race_never_two_get_one_turn(tmp_path):
    """Who is overtaken before it has made sure gets none; the newest turn is always somebody's."""
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    taken = [int(word) for racer in racers for word in racer.communicate(timeout=60)[0].split()]
    assert len(set(taken)) == len(taken) > 100
    assert max(taken) == Turns(tmp_path).newest().number >= 300


def test_a_turn_knows_when_it_was_taken_and_the_ones_before_are_gone(tmp_path):
    turns, now = Turns(tmp_path), 1795306500.123456
    assert turns.newest() == Turn(0, 0.0)
    first = turns.take(turns.newest(), now)
    second = turns.take(first, now + 1)
    assert (first, turns.newest()) == (Turn(1, now), second)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_who_slept_between_looking_and_taking_gets_nothing(tmp_path):
    """The number it saw last is gone meanwhile, so the next one can be made again; it is not the newest."""
    turns = Turns(tmp_path)
    seen = turns.take(Turn(), 1.0)
    newest = turns.take(turns.take(seen, 2.0), 3.0)
    assert turns.take(seen, 4.0) is None
    assert turns.newest() == newest
    assert turns.take(newest, 5.0) == Turn(4, 5.0)


def test_what_is_no_turn_is_let_be(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "7").touch()
    turns = Turns(tmp_path)
    assert turns.newest() == Turn(7, 0.0)
    assert turns.take(turns.newest(), 1.0) == Turn(8, 1.0)
    assert (tmp_path / "notes.txt").exists()


def test_a_folder_that_cannot_hold_links_says_so(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        Turns(tmp_path / "gone").take(Turn(), 1.0)
