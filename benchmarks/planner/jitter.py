"""Steps under jitter: how long simulating them takes, how true it is, what microbatches in flight are worth.

    python benchmarks/planner/jitter.py scale
    python benchmarks/planner/jitter.py truth
    python benchmarks/planner/jitter.py in-flight

The first takes half a minute, the others drive every pipeline and take some.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from hpcdl.planner.disturbance import Disturbance
from hpcdl.planner.layout import spread
from hpcdl.planner.plan import build_case
from hpcdl.planner.replicas import Replicas, step_times
from hpcdl.planner.simulation import simulate_steps
from hpcdl.sites.load import load_site
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment
from hpcdl.stage import Flow

DISTURBANCES = {
    "nothing": Disturbance(),
    "jitter 0.02": Disturbance(jitter=0.02),
    "jitter 0.05": Disturbance(jitter=0.05),
    "jitter 0.2": Disturbance(jitter=0.2),
    "jitter 0.05, 1 in 1000 slow by 1.2": Disturbance(0.05, 0.001, 1.2),
    "jitter 0.05, 0.1 s of pause each 1000 s": Disturbance(0.05, pause_rate=0.001, pause_seconds=0.1),
}


def scale() -> None:
    """GPT-3 175B with 51,200 words on 65,536 A100: 16 stages × 8 tensor × 512 data, 64 microbatches."""
    decomposition = Decomposition(data=512, pipeline=16, x=8)
    experiment = Experiment.model_validate(
        {
            "model": {"preset": "gpt3-175b", "vocab": 51200},
            "data": {"source": "stdlib"},
            "training": {"global_batch": 512 * 64},
            "resources": {"gpus": decomposition.ranks},
        }
    )
    site = load_site("perlmutter")
    case = build_case(experiment, site, spread(experiment.resources, site))
    print(f"{decomposition.ranks} ranks, 100 steps")
    print("| disturbance | mean | p5 | p50 | p95 | p99 | in order | took |")
    for name, disturbance in DISTURBANCES.items():
        start = time.perf_counter()
        found = simulate_steps(case, decomposition, disturbance).to_json()
        took = time.perf_counter() - start
        numbers = (found[key] for key in ("mean", "p5", "p50", "p95", "p99", "in_order_mean"))
        print(
            f"| {name} | " + " | ".join(f"{number:.2f} s" for number in numbers) + f" | {took:.1f} s |",
            flush=True,
        )
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def equal(flow: Flow, hop: float, count: int) -> Replicas:
    """Pipelines whose microbatches take 0.1 s forward and 0.2 s backward on a rank, half for the weights."""
    one = [0.1 / flow.chunks] * (flow.ranks * flow.chunks)
    return Replicas(flow, one, [2 * seconds for seconds in one], one, hop, count=count)


FLOWS = {
    "plain": Flow(8, 32),
    "2 chunks": Flow(8, 32, 2),
    "deferred": Flow(8, 32, defer_weights=True),
}
ROUGH = {  # by jitter
    "0.05": Disturbance(jitter=0.05),
    "0.2": Disturbance(jitter=0.2),
    "0.05, slow": Disturbance(0.05, 0.02, 1.3),
    "0.05, pauses": Disturbance(0.05, pause_rate=0.01, pause_seconds=0.5),
}


def truth() -> None:
    """8 ranks, 32 microbatches, 512 replicas, 10 steps; 256 of 5120 pipelines driven, or all."""
    print("| pipeline | jitter | all | p5 to p95 | 256 driven | p5 to p95 | off, 5 seeds | in order |")
    for kind, flow in FLOWS.items():
        replicas = equal(flow, 0.01, 512)
        for name, disturbance in ROUGH.items():
            whole = step_times(replicas, disturbance, 10, 0, 5120)
            parts = [step_times(replicas, disturbance, 10, seed, 256) for seed in range(5)]
            off = [part.mean / whole.mean - 1 for part in parts]
            cells = [
                kind,
                name,
                *_distribution(whole.samples / whole.undisturbed),
                *_distribution(np.concatenate([part.samples for part in parts]) / whole.undisturbed),
                f"{min(off):+.1%} to {max(off):+.1%}",
                f"{whole.in_order.mean() / whole.undisturbed:.3f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


def _distribution(samples: np.ndarray) -> tuple[str, str]:
    low, high = np.quantile(samples, (0.05, 0.95))
    return f"{samples.mean():.3f}", f"{low:.3f} to {high:.3f}"


def in_flight() -> None:
    """8 ranks, 32 microbatches, 128 replicas, 12 steps, all driven; seconds over those of the work alone."""
    work = 32 * 0.3
    limits = (8, 10, 12, 16, 24)
    print("| jitter | " + " | ".join(f"{limit} in flight" for limit in limits) + " |")
    for name, disturbance in ({"nothing": Disturbance()} | ROUGH).items():
        cells = []
        for limit in limits:
            found = step_times(equal(Flow(8, 32, in_flight=limit), 0.01, 128), disturbance, 12, 0, 12 * 128)
            cells.append(f"{found.mean / work:.2f} ({found.in_order.mean() / work:.2f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    {"scale": scale, "truth": truth, "in-flight": in_flight}[sys.argv[1]]()
