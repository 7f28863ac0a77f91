"""Ranks over MPI, which would let them wait for each other for ever: the hang ends all the same."""

import re
import socket
from pathlib import Path

import pytest
from engine_runs import Run, finished

from hpcdl.runs import store
from hpcdl.runs.blame import first_failure
from hpcdl.spec.decomposition import Decomposition
from hpcdl.telemetry import read_heartbeat

TESTS = Path(__file__).parents[1]
RANKS = Decomposition(data=3, microbatch=4)

pytestmark = [pytest.mark.mpi, pytest.mark.slow]


def hanging(path, fault):
    """What the ranks left of a run whose rank 1 stands still after some steps."""
    arguments = {"fault": fault, "rank": 1}
    run = Run(
        path,
        RANKS,
        model={"entry": "hanging:program", "folder": str(TESTS), "arguments": arguments},
        data=None,
        training={"global_batch": 12, "steps": 100000, "precision": "fp32"},
        communication={"transport": "mpi"},
        health={"hang_seconds": 4, "preflight": "off"},
    )
    (code,) = finished([run.start_mpi()], 240)
    assert code != 0
    return run


def test_a_rank_that_sleeps_names_itself(tmp_path):
    run = hanging(tmp_path, "sleep")
    failure = first_failure(store.evidence(run.folder, 1, 3))
    assert (failure.rank, failure.host, failure.exception) == (1, socket.gethostname(), "HangError")
    assert re.search(r"forward of microbatch 0, at .*hanging\.py:\d+ in sleep$", failure.reason)
    assert "no progress: stood still for" in run.log(0)
    assert read_heartbeat(run.folder.heartbeat(1, 0)).at == "all_reduce over 3 ranks"


def test_a_rank_that_holds_the_interpreter_is_named_by_a_peer(tmp_path):
    """mpiexec kills the others as soon as the first is gone, so only that one may have told anything."""
    run = hanging(tmp_path, "hold")
    failure = first_failure(store.evidence(run.folder, 1, 3))
    assert (failure.rank, failure.host, failure.exception) == (1, socket.gethostname(), "HangError")
    assert failure.reason.startswith("no sign of life for ")
    assert re.search(r'hanging\.py", line \d+ in hold', run.log(1))
