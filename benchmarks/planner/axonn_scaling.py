"""AxoNN's weak and strong scaling (SC'24, arXiv 2502.08145, figures 6 and 9) by the planner, in one figure.

The paper prints no grids, so the planner's best for AxoNN stands for each run. Nothing in the planner is
fitted to these times.

pip install matplotlib
python benchmarks/planner/axonn_scaling.py docs/planner/axonn-scaling.svg
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
from answers import Answer, answer
from rows import MEASURED, Row, read_rows

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

FILE = "axonn_sc24_scaling"
TOKENS = 2e12
MONTH = 30 * 86400


def scaling() -> tuple[list[Answer], list[Answer]]:
    """What the planner says to the runs of figure 6, and to those of figure 9."""
    answers, _ = answer(read_rows(MEASURED, FILE)[0])
    strong = [one for one in answers if _is_strong(one.row)]
    return [one for one in answers if not _is_strong(one.row)], strong


def _is_strong(row: Row) -> bool:
    return "months" in row.notes


def months(seconds: float, one: Answer) -> float:
    """Months of 30 days for 2 T tokens, as figure 9 has them."""
    question = one.prediction.question
    return TOKENS / (question.training.global_batch * question.model.sequence) * seconds / MONTH


def main(target: Path) -> None:
    """Draw, and print what is drawn."""
    mpl.rcParams["svg.hashsalt"] = "the same file for the same lines"
    weak, strong = scaling()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5))
    for machine, runs in groupby(weak, lambda one: one.row.machine.split(":")[0]):
        _draw(left, machine, [(one, 1.0) for one in runs])
    for model, runs in groupby(strong, lambda one: one.row.model):
        _draw(right, model, [(one, months(1.0, one)) for one in runs])
    left.set(title="weak scaling, 16.8 M tokens a batch", ylabel="seconds a batch", ylim=(0, None))
    right.set(title="strong scaling on Frontier", ylabel="months to 2 T tokens", yscale="log")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="GPUs or GCDs")
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        axes.legend(title="line: planner, points: published", fontsize="small", title_fontsize="small")
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def _draw(axes: Axes, name: str, runs: list[tuple[Answer, float]]) -> None:
    gpus = [one.row.gpus for one, _ in runs]
    planned = [one.prediction.seconds * scale for one, scale in runs]
    published = [(one.row.seconds or 0.0) * scale for one, scale in runs]
    (line,) = axes.plot(gpus, planned, label=name)
    axes.plot(gpus, published, "o", color=line.get_color())
    for (one, _), ours, theirs in zip(runs, planned, published, strict=True):
        d = one.prediction.decomposition
        error = ours / theirs - 1
        run = f"{name:<11} {one.row.model:<9} {one.row.gpus:>6}  {d!s:<20}"
        print(f"{run} {ours:9.2f} {theirs:9.2f} {error:+7.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
