"""How fast the planner is, with what others take: searches of Calculon's space and our own, and cold starts.

CPU seconds of one core, medians of several rounds; cold starts are whole processes, interpreter and imports
included.

usage: python benchmarks/planner/speed.py
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import calculon_space

from hpcdl.planner import steady
from hpcdl.planner.engines import find_engine
from hpcdl.planner.plan import plan
from hpcdl.sites.load import load_site
from hpcdl.spec.experiment import Experiment

ROUNDS = 5
TRILLION = dict(layers=128, hidden=25600, heads=160, vocab=51200, sequence=2048)
SEARCHES = (
    ("22B on 8, any engine", dict(layers=48, hidden=6144, heads=64, vocab=51200, sequence=2048), 8, 4, "any"),
    ("175B on 64, any engine", dict(preset="gpt3-175b", vocab=51200), 64, 64, "any"),
    ("175B on 1,024", dict(preset="gpt3-175b", vocab=51200), 1024, 1536, "hpcdl"),
    ("1T on 16,384", TRILLION, 16384, 4096, "hpcdl"),
)
# Calculon on two cores of a Xeon, commit caa4b11: 22B measured whole; 175B from 93 to 145 a second.
PEERS = {"22B": "Calculon 1,339 s", "175B": "Calculon 6 to 9 h"}
COLD = (
    (
        "one estimate, cold start",
        {"data": 8, "pipeline": 2, "x": 4, "recompute": "full", "zero": 1},
        "Calculon 0.37 s",
    ),
    ("1T on 16,384, cold start", "auto", "-"),
)


def main() -> None:
    """Measure everything and print a table."""
    print("| what | decompositions | CPU seconds | others |")
    print("|---|---|---|---|")
    for request in calculon_space.REQUESTS:
        seconds, found = _median(lambda request=request: calculon_space.search(request))
        name = f"Calculon's space, {request.name} on {request.gpus}"
        print(f"| {name} | {found[0]:,} | {seconds:.2f} | {PEERS[request.name]} |", flush=True)
    for name, model, gpus, batch, engine in SEARCHES:
        experiment = _experiment(model, gpus, batch, "auto")
        site, runs = load_site("perlmutter"), find_engine(engine)
        seconds, found = _median(lambda e=experiment, n=gpus, r=runs, s=site: plan(e, s, n, engine=r))
        print(f"| our space, {name} | {found.evaluated:,} | {seconds:.2f} | - |", flush=True)
    for name, parallelism, peer in COLD:
        gpus, batch = (16384, 4096) if parallelism == "auto" else (64, 64)
        model = TRILLION if parallelism == "auto" else dict(preset="gpt3-13b", vocab=51200)
        seconds = _cold(_experiment(model, gpus, batch, parallelism))
        print(f"| {name} | | {seconds:.2f} | {peer} |", flush=True)


def _experiment(model: dict, gpus: int, batch: int, parallelism: object) -> Experiment:
    return Experiment.model_validate(
        {
            "model": model,
            "data": {"source": "stdlib"},
            "training": {"global_batch": batch},
            "parallelism": parallelism,
            "resources": {"gpus": gpus},
        }
    )


def _median(work: Callable[[], object]) -> tuple[float, object]:
    times, found = [], None
    for _ in range(ROUNDS):
        steady.seconds.cache_clear()  # what an earlier round drove
        started = time.process_time()
        found = work()
        times.append(time.process_time() - started)
    return statistics.median(times), found


def _cold(experiment: Experiment) -> float:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "experiment.yaml"
        file.write_text(experiment.model_dump_json(exclude_defaults=True), encoding="utf-8")
        command = [sys.executable, "-m", "hpcdl", "plan", str(file), "--site", "perlmutter"]
        times = [_cpu_of(command) for _ in range(ROUNDS)]
    return statistics.median(times)


def _cpu_of(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
