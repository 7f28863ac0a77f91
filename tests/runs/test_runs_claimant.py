"""Whoever claims an attempt is known again, and known to be gone."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hpcdl.run_folder import NOBODY, RunFolder
from hpcdl.runs import claims
from hpcdl.runs.claimant import Claimant, claimant, this_process
from hpcdl.workflow.claiming import who


def test_a_process_reads_its_own_mark():
    me = this_process()
    assert claimant(me.mark) == me
    assert me.is_alive
    assert me.mark != me.mark  # a claim is never taken for an earlier one
    assert str(me) == f"process {os.getpid()} on {socket.gethostname()}"


@pytest.mark.parametrize("mark", ["", "requeued 12", "process 1 on host", "process x-2@host ab", "somebody"])
def test_what_is_no_process_of_ours_is_nobody(mark):
    assert claimant(mark) is None


def test_a_process_that_has_ended_is_not_alive_and_neither_is_another_of_its_number():
    command = [sys.executable, "-c", "from hpcdl.runs.claimant import *; print(this_process().mark)"]
    gone = claimant(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert gone.is_alive is False
    assert replace(this_process(), started=1).is_alive is False


def test_a_process_that_its_parent_has_not_taken_note_of_is_dead():
    with subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE) as child:
        stat = Path(f"/proc/{child.pid}/stat").read_text()
        who = Claimant(child.pid, int(stat.rpartition(")")[2].split()[19]), socket.gethostname())
        assert who.is_alive
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is left as it is
        assert who.is_alive is False


def test_of_another_host_nobody_can_tell():
    assert replace(this_process(), host="elsewhere").is_alive is None


def test_a_claim_is_as_old_as_its_file_system_says_whatever_the_clock_here(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    claims.claim(folder, 1, "somebody")
    assert 0 <= claims.age(folder, 1) < 60
    stat = folder.claim(1).lstat()
    os.utime(folder.claim(1), (stat.st_atime, stat.st_mtime - 500), follow_symlinks=False)
    assert 500 <= claims.age(folder, 1) < 560


def test_what_nobody_claimed_is_nobodys_for_ever(tmp_path):
    folder = RunFolder(tmp_path)
    assert (claims.age(folder, 1), who(folder, 1)) == (math.inf, "nobody")
    claims.claim(folder, 1, "somebody")
    assert (claims.age(folder, 2), who(folder, 2)) == (math.inf, "nobody")


def test_only_one_of_a_job_and_nobody_has_an_attempt(tmp_path):
    folder = RunFolder(tmp_path)
    assert claims.give_up(folder, 1)
    assert claims.give_up(folder, 1)
    folder.start(2).symlink_to("12")
    assert not claims.give_up(folder, 2)
    assert claims.starts(folder) == {1: NOBODY, 2: "12"}
