"""Starting hpcdl as somebody who may only read: without the capabilities by which root writes everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import ctypes
version_3, words = 0x20080522, 6  # effective, permitted and inheritable, of 32 capabilities each, twice
header, none = (ctypes.c_uint32 * 2)(version_3, 0), (ctypes.c_uint32 * words)()
assert ctypes.CDLL(None).capset(header, none) == 0
from hpcdl.__main__ import main
main()
"""


def hpcdl(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Call ``hpcdl ARGS`` so that the permissions of files hold, for root too."""
    command = [sys.executable, "-c", _PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_only(folder: Path) -> None:
    """Let nobody write in a folder or in what is in it."""
    for place, _, files in os.walk(folder):
        for path in (place, *(os.path.join(place, name) for name in files)):  # noqa: PTH118
            if not os.path.islink(path):  # noqa: PTH114
                os.chmod(path, 0o555)  # noqa: PTH101
