"""What every file of the repository has to be, whatever it holds."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("hpcdl", "templates", "site_configs", "scripts", "tests", "docs", "examples", "benchmarks", ".ci")
SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"])
CONFLICT = re.compile(rb"^(<{7}|>{7}) ", re.MULTILINE)


def sources() -> list[Path]:
    below = [
        path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts
    ]
    return [path for path in (*ROOT.iterdir(), *below) if path.is_file() and not path.is_symlink()]


def test_no_file_holds_both_sides_of_a_merge() -> None:
    """scripts/tools.sh once did: it is read by bash alone, and only where it has something to install."""
    torn = [str(path.relative_to(ROOT)) for path in sources() if CONFLICT.search(path.read_bytes())]
    assert torn == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_shell_script_of_the_repository_parses(script: Path) -> None:
    answer = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_spelling_is_not_looked_for_in_what_git_ignores() -> None:
    """``make test`` after ``make quickstart`` ended at a misspelt word in the text that had been trained on."""
    ignored = re.findall(r"^/([a-z]+)/$", (ROOT / ".gitignore").read_text(), re.MULTILINE)
    skipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["codespell"]["skip"].split(",")
    assert "runs" in ignored
    assert {f"./{name}" for name in ignored} <= set(skipped)
