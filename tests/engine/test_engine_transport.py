"""The same exercises over threads, Gloo processes and MPI processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_worlds import in_threads
from exercise_transport import RANKS, exercise
from quick import first_of

from hpcdl.engine.transport.memory import World

PROGRAM = Path(__file__).with_name("exercise_transport.py")
# As between nodes: no rank reads another's memory, so a large message moves only while both call MPI.
APART = {"MPIR_CVAR_CH4_CMA_ENABLE": "0", "MPIR_CVAR_CH4_XPMEM_ENABLE": "0"}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parents[2])}


def test_memory_keeps_the_promises():
    in_threads(RANKS, exercise)


def test_gloo_keeps_the_promises(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, "dist"],
            env={**ENVIRONMENT, "RANK": str(rank), "STORE": str(tmp_path / "store")},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    outcomes = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    assert [code for _, code in outcomes] == [0] * RANKS, outcomes


@pytest.mark.mpi
@pytest.mark.parametrize("kind", first_of("mixed", "staged", "mpi"))
def test_mpi_keeps_the_promises(tmp_path, kind):
    """Staged: what goes to MPI is a copy, as for GPU memory that the library cannot read."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [mpiexec, "-n", str(RANKS), sys.executable, "-m", "mpi4py", PROGRAM, kind]
    told = {"STORE": str(tmp_path / "store"), "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"}
    environment = ENVIRONMENT | APART | told
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_memory_wakes_those_who_wait_for_a_lost_rank():
    world = World(2)
    waiting = world.transport(0).all_reduce(torch.zeros(1), world.transport(0).group((0, 1)))
    world.fail()
    with pytest.raises(ConnectionError, match="another rank is gone"):
        waiting.wait()


def test_memory_gives_up_on_a_message_that_never_comes():
    """A deadlock in a test is a failure with a name, not a hang."""
    receive = World(2, timeout_seconds=0.05).transport(0).receive(torch.zeros(1), 1, tag=0)
    with pytest.raises(TimeoutError, match="nothing arrived within"):
        receive.wait()
