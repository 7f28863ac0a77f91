"""Scripts of every shipped site, looked at once and then held byte for byte.

After a change that is meant: ``python -m tests.schedulers.goldens`` writes them anew.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest
from schedulers.goldens import FOLDER, scripts

SCRIPTS = dict(scripts())
KEPT = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.sh"))


def test_there_is_a_golden_script_for_each_and_no_other():
    assert sorted(SCRIPTS) == KEPT


@pytest.mark.parametrize("path", KEPT, ids=str)
def test_script_is_the_golden_one(path):
    assert SCRIPTS[path] == (FOLDER / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", KEPT, ids=str)
def test_golden_script_is_sound_bash(path):
    checked = subprocess.run(["bash", "-n", str(FOLDER / path)], capture_output=True, check=True)
    assert checked.stderr == b""


def test_golden_scripts_pass_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: scripts/tools.sh installs it")
    # SC1091: /etc/profile is elsewhere. SC2016: what a rank's own shell reads. SC2317: a trap's function.
    files = [str(FOLDER / path) for path in KEPT]
    checked = subprocess.run(
        ["shellcheck", "--severity=info", "--exclude=SC1091,SC2016,SC2317", *files],
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout.decode()
