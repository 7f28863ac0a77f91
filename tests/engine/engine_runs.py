"""Run folders and real ranks: what a job script starts, without the job script."""

import os
import subprocess
import sys
import time
from pathlib import Path

from hpcdl.run_folder import RunFolder
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment, Rendezvous, ResolvedRun
from hpcdl.spec.job import Layout
from hpcdl.telemetry import RunEvent, StepRecord, read, read_exits

PACKAGE = Path(__file__).parents[2]
MODEL = {"family": "gpt", "layers": 4, "hidden": 32, "heads": 4, "vocab": 256, "sequence": 32}
TRAINING = {"global_batch": 8, "steps": 6, "precision": "fp32", "optimizer": {"lr": 1e-2}}


class Run:
    """One run folder and its ranks."""

    def __init__(self, path, decomposition, *, timeout=60, **changes):
        path.mkdir(parents=True, exist_ok=True)
        corpus = path / "corpus.txt"
        corpus.write_text("the quick brown fox jumps over the lazy dog. " * 200)
        told = {"model": MODEL, "data": {"path": str(corpus)}, "training": TRAINING} | changes
        told = {
            key: value for key, value in told.items() if value is not None
        }  # an own model brings its data
        self.folder = RunFolder(path)
        self.ranks = decomposition.ranks
        self.resolved = ResolvedRun(
            run=path.name,
            experiment=Experiment.model_validate(told),
            decomposition=decomposition,
            layout=Layout(nodes=1, ranks_per_node=decomposition.ranks, cores_per_rank=1),
            device="cpu",
            device_per_rank=False,
            rendezvous=Rendezvous(address="loopback", timeout_seconds=timeout),
            site="test",
            versions={},
        )
        self.folder.resolved.write_text(self.resolved.model_dump_json())

    def start(self, ranks=None, attempt=1, world_size=None):
        """The processes of ``ranks``, all if not given."""
        return [
            subprocess.Popen(
                [sys.executable, "-m", "hpcdl.engine", self.folder.path],
                env=environment(
                    RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world_size or self.ranks, HPCDL_ATTEMPT=attempt
                ),
            )
            for rank in (range(self.ranks) if ranks is None else ranks)
        ]

    def start_mpi(self):
        mpiexec = Path(sys.executable).with_name("mpiexec")
        program = [sys.executable, "-m", "mpi4py", "-m", "hpcdl.engine", self.folder.path]
        # As the launcher sets it where ranks share cores.
        told = environment(MPIR_CVAR_ENABLE_HEAVY_YIELD=1)
        return subprocess.Popen([mpiexec, "-n", str(self.ranks), *program], env=told)

    def complete_mpi(self):
        """Run to the end under mpiexec, which must be a good one."""
        ended = self.start_mpi().wait(timeout=120)
        codes = {rank: record.exit_code for rank, record in self.exits().items()}
        assert (ended, codes) == (0, dict.fromkeys(range(self.ranks), 0)), self.log(0)
        return self

    def complete(self, attempt=1):
        """Run to the end, which must be a good one."""
        codes = finished(self.start(attempt=attempt))
        assert codes == [0] * self.ranks, self.log(codes.index(next(filter(None, codes))), attempt)
        return self

    def steps(self, rank=0):
        return read(self.folder.rank_metrics(rank), StepRecord)

    def losses(self, rank=0):
        return [record.loss for record in self.steps(rank)]

    def events(self):
        return read(self.folder.engine_events, RunEvent)

    def exits(self, attempt=1):
        """By rank."""
        return {record.rank: record for record in read_exits(self.folder.exits(attempt))}

    def log(self, rank, attempt=1):
        return self.folder.rank_log(attempt, rank).read_text()


def environment(**variables):
    """This process's, without what a launcher above it may have set."""
    launchers = ("PMI", "SLURM", "OMPI", "PALS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "HPCDL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    told = {name: str(value) for name, value in variables.items()}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE)} | told


def finished(processes, seconds=120):
    """Exit codes."""
    return [process.wait(timeout=seconds) for process in processes]


def wait_until(condition, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not happen within {seconds} s"
        time.sleep(0.02)


SERIAL = Decomposition(microbatch=4)
