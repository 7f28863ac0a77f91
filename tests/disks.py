"""Disks that are soon full."""

import mmap
import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def small_disk(path, size="1m", *options):
    """A file system of its own at ``path``, which is made if it is not there; needs root."""
    path.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a disk that is full needs mount -t tmpfs, which only root may do")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path):
    """Leave no room on the disk of ``path``, a new file."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass


def begin_page(path):
    """Begin a page at the end of a file of lines, in which there is room however full the disk becomes."""
    with path.open("ab") as file:
        file.write(b"\n" * (-file.tell() % mmap.PAGESIZE + 1))


def fill_page(path):
    """Leave no room in the last page of a file of lines either."""
    with path.open("ab") as file:
        file.write(b"\n" * (-file.tell() % mmap.PAGESIZE))
