"""Curves of several runs over each other, as a figure; needs matplotlib (``hpcdl[plot]``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from hpcdl.cli.plans.plots import Panel, literal, save
from hpcdl.runs.reports.contents import CURVES
from hpcdl.runs.reports.recorded import Recorded
from hpcdl.runs.reports.thinning import thinned

_DRAWN = ("loss", "tokens_per_second")
_STYLES = ("-", "--", ":", "-.")  # told apart without colours, too


def draw(path: Path, runs: Sequence[Recorded]) -> None:
    """Draw loss and throughput over steps.

    Raises:
        UsageError: the file cannot be written.
    """
    panels = [Panel(lambda axes, name=name: _panel(axes, runs, name)) for name in _DRAWN]  # type: ignore[misc]
    save(path, "\n".join(each.name for each in runs), panels)


def _panel(axes: Axes, runs: Sequence[Recorded], name: str) -> None:
    for place, each in enumerate(runs):
        values = each.columns.numbers[name]
        kept = thinned(values)
        style = _STYLES[place % len(_STYLES)]
        # A line's label that begins with an underscore would be left out of the legend.
        steps = [each.columns.step[at] for at in kept]
        axes.plot(
            steps, [values[at] for at in kept], style, label=literal(each.name.lstrip("_")), linewidth=1.2
        )
    axes.set_xlabel("step")
    axes.set_ylabel(CURVES[name])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
