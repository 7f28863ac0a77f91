"""The page of machines says what the files say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_table_of_machines_is_that_of_the_files():
    printed = subprocess.run(
        [sys.executable, ROOT / "scripts" / "machines.py"], capture_output=True, text=True, check=True
    ).stdout
    assert printed.count("\n") >= 24 + 2
    assert printed in (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
