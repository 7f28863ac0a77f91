"""Which torch an interpreter has, read from files that torch's builds wrote."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from hpcdl.workflow.studies.interpreter import torch_versions

HEAD = """from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip']
"""

# Of wheels of torch 2.7.1 for CUDA 12.6 and of 2.5.0 for CPUs; the two for ROCm are written alike, as of torch's
# setup.py, tools/generate_torch_version.py.
BUILDS = [
    (
        "__version__ = '2.7.1+cu126'\ndebug = False\ncuda: Optional[str] = '12.6'\nhip: Optional[str] = None\nxpu: Optional[str] = None\n",
        {"torch": "2.7.1+cu126", "cuda": "12.6"},
    ),
    (
        "__version__ = '2.5.0'\ndebug = False\ncuda: Optional[str] = None\nhip: Optional[str] = None\n",
        {"torch": "2.5.0"},
    ),
    (
        "__version__ = '2.8.0+rocm6.4'\ncuda: Optional[str] = None\nhip: Optional[str] = '6.4.43482-0f2d60242'\n",
        {"torch": "2.8.0+rocm6.4", "rocm": "6.4.43482-0f2d60242"},
    ),
    (
        "__version__ = '2.13.0'\ncuda: Optional[str] = None\nhip: Optional[str] = '7.1.52802'\nrocm: Optional[str] = '7.1.1'\n",
        {"torch": "2.13.0", "rocm": "7.1.1"},
    ),
]


def installed(folder: Path, text: str, lib: str = "lib") -> str:
    """An interpreter in ``folder`` with a torch whose version file holds ``text``."""
    package = folder / lib / "python3.11" / "site-packages" / "torch"
    package.mkdir(parents=True)
    (package / "version.py").write_text(text)
    python = folder / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    # As in a virtual environment: a link to an interpreter elsewhere.
    python.symlink_to(sys.executable)
    return str(python)


@pytest.mark.parametrize(("text", "versions"), BUILDS)
@pytest.mark.parametrize("lib", ["lib", "lib64"])
def test_versions_are_those_of_the_build(tmp_path, text, versions, lib):
    assert torch_versions(installed(tmp_path, HEAD + text, lib)) == versions


@pytest.mark.parametrize(
    "text",
    [
        "",
        "__version__ = (",
        "__version__ = 2\ncuda = b'12'\n",
        "import os; __version__ = os.environ['HOME']\n",
        "def cuda(): return '12'\n",
        "\0",
    ],
)
def test_a_file_that_says_nothing_plain_says_nothing(tmp_path, text):
    assert torch_versions(installed(tmp_path, text)) == {}


def test_nothing_in_the_file_is_run(tmp_path):
    text = f"__version__ = '2.9'\nopen({str(tmp_path / 'ran')!r}, 'w')\n"
    assert torch_versions(installed(tmp_path, text)) == {"torch": "2.9"}
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "python", ["python3", "/nowhere/bin/python", "singularity exec image.sif python", ""]
)
def test_an_interpreter_that_is_not_here_tells_nothing(python):
    assert torch_versions(python) == {}


def test_of_this_interpreter_it_is_the_torch_that_is_installed_and_torch_is_not_imported():
    pytest.importorskip("torch")
    program = (
        "import sys; from hpcdl.workflow.studies.interpreter import torch_versions; "
        "print(torch_versions(sys.executable)['torch'], 'torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    version, imported = told.split()
    assert version.partition("+")[0] == importlib.metadata.version("torch").partition("+")[0]
    assert imported == "False"
