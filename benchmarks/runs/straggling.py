"""How long it takes to find the slow ranks of a large run: seconds, best of three.

usage: python benchmarks/runs/straggling.py
"""

import json
import tempfile
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path

from hpcdl.run_folder import RunFolder
from hpcdl.runs.nodes.stragglers import stragglers
from hpcdl.runs.nodes.working import works
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment, Rendezvous, ResolvedRun
from hpcdl.spec.job import Layout
from hpcdl.telemetry import Heartbeat, RunEvent, StepRecord, append, write_heartbeat

STEPS = 200
SIZES = (64, 1024)
MODEL = {"family": "gpt", "layers": 4, "hidden": 32, "heads": 4, "vocab": 256, "sequence": 32}


def write(path: Path, ranks: int) -> RunFolder:
    """A run of so many ranks in four stages, eight a host; rank 5 is slow."""
    told = {"model": MODEL, "data": {"path": "x"}, "training": {"global_batch": ranks, "steps": STEPS}}
    run = ResolvedRun(
        run="r",
        experiment=Experiment.model_validate(told),
        decomposition=Decomposition(data=ranks // 4, pipeline=4),
        layout=Layout(nodes=ranks // 8, ranks_per_node=8, cores_per_rank=1),
        device="cpu",
        device_per_rank=False,
        rendezvous=Rendezvous(address="loopback"),
        site="test",
        versions={},
    )
    folder = RunFolder(path)
    folder.metrics.mkdir(parents=True)
    folder.resolved.write_text(run.model_dump_json())
    append(folder.launcher_events, RunEvent("submitted", 1.0, 1, {"job_id": "7"}))
    for rank in range(ranks):
        sign = Heartbeat(rank, f"n{rank // 8}", 9, 9, "", "", waiting=False, moves=9, still=0, patience=None)
        write_heartbeat(folder.heartbeat(1, rank), sign)
        folder.rank_metrics(rank).write_text(_records(2.0 if rank == 5 else 1.0))
    return folder


@cache
def _records(own: float) -> str:
    seconds = {"compute": own, "optimizer": 0.1, "all_reduce": 0.2, "idle": 2.5 - own, "other": 0.1}
    records = (StepRecord(step, 1.0, 9, 3.0, 3.0, seconds=seconds, attempt=1) for step in range(STEPS))
    return "".join(json.dumps(asdict(record)) + "\n" for record in records)


def main() -> None:
    """A line for each size."""
    for ranks in SIZES:
        with tempfile.TemporaryDirectory() as path:
            folder = write(Path(path) / "run", ranks)
            best = float("inf")
            for _ in range(3):
                start = time.process_time()
                (found,) = stragglers(works(folder))
                best = min(best, time.process_time() - start)
            print(f"{ranks:5d} ranks of {STEPS} steps: {best:.2f} s ({found.slowness.steps} steps compared)")


if __name__ == "__main__":
    main()
