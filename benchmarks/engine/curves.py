"""One experiment in six decompositions: twenty steps each by ``hpcdl submit``, the curves in one figure.

pip install matplotlib
python benchmarks/engine/curves.py docs/engine/curves.svg
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

STEPS = 20
EXPERIMENT = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
DECOMPOSITIONS = {
    "one rank": "{microbatch: 9}",
    "data 2 · z 2, ZeRO-1": "{data: 2, z: 2, microbatch: 9, zero: 1}",
    "x 2 · y 2": "{x: 2, y: 2, microbatch: 9, recompute: selective}",
    "pipeline 4, deferred weights": "{pipeline: 4, microbatch: 3, defer_weights: true}",
    "data 2 · pipeline 2, interleave 2": "{data: 2, pipeline: 2, microbatch: 3, interleave: 2}",
    "data · pipeline · y, each 2": "{data: 2, pipeline: 2, y: 2, microbatch: 6, recompute: full}",
}
RANKS = {"one rank": 1, "data · pipeline · y, each 2": 8}


def losses(name: str, parallelism: str, runs: Path) -> list[float]:
    """The loss of every step of one run."""
    settings = {
        "model.layers": 8,
        "model.hidden": 96,
        "parallelism": parallelism,
        "training.steps": STEPS,
        "training.precision": "fp32",
        "training.global_batch": 36,
        "resources.queue": "cpu",
    }
    command = ["hpcdl", "submit", str(EXPERIMENT), "--wait", "--json", "--runs", str(runs)]
    command += ["--gpus", str(RANKS.get(name, 4))]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    records = Path(json.loads(done.stdout)["path"], "metrics", "rank-00000.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in records]


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as runs:
        curves = {name: losses(name, text, Path(runs)) for name, text in DECOMPOSITIONS.items()}
    serial = curves["one rank"]
    fig, (above, below) = plt.subplots(2, sharex=True, figsize=(8, 6), height_ratios=(2, 1))
    for place, (name, values) in enumerate(curves.items()):
        steps = range(1, STEPS + 1)
        difference = [abs(value / wanted - 1) for value, wanted in zip(values, serial, strict=True)]
        print(f"{name:36} {values[0]:.6f} -> {values[-1]:.6f}, at most {max(difference):.1e} off")
        above.plot(steps, values, label=name, linewidth=7 - place, alpha=0.7)
        below.semilogy(steps, [max(value, 1e-9) for value in difference])
    above.set_ylabel("loss")
    above.legend(fontsize=8)
    below.set_ylabel("relative difference\nto one rank")
    below.set_xlabel("step")
    fig.tight_layout()
    fig.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
