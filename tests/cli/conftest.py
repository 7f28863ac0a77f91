"""Running the command line in this process, through its one boundary."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcdl.__main__ import main

TINY = Path(__file__).parents[1] / "tiny.yaml"


@dataclass(frozen=True)
class Result:
    """What one command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def hpcdl(monkeypatch, capfd):
    """Call ``hpcdl ARGS``."""

    def call(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["hpcdl", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """An experiment that trains in seconds on two ranks; its runs go to a folder of the test."""
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.read_text())
    monkeypatch.setenv("HPCDL_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("HPCDL_SITE", raising=False)
    return path
