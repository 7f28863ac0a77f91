"""How long a search takes, from loaded modules, for small and large requests.

usage: python benchmarks/planner/search.py
"""

import statistics
import time

from hpcdl.planner.plan import plan
from hpcdl.sites.load import load_site
from hpcdl.spec.experiment import Experiment

ROUNDS = 7
CASES = (
    ("gpt3-13b", 8, 64),
    ("gpt3-13b", 64, 512),
    ("gpt3-175b", 1024, 1536),
    ("llama3-405b", 16384, 2048),
)


def main() -> None:
    """Time each case and print a row."""
    site = load_site("perlmutter")
    for preset, gpus, batch in CASES:
        experiment = Experiment.model_validate(
            {
                "model": {"preset": preset},
                "data": {"source": "stdlib"},
                "training": {"global_batch": batch},
                "resources": {"gpus": gpus},
            }
        )
        times, evaluated = [], 0
        for _ in range(ROUNDS):
            start = time.perf_counter()
            evaluated = plan(experiment, site, gpus).evaluated
            times.append(time.perf_counter() - start)
        median_ms = statistics.median(times) * 1e3
        print(f"{preset:>12} on {gpus:>6} GPUs: {evaluated:>7} candidates, {median_ms:7.1f} ms")


if __name__ == "__main__":
    main()
