"""Results of a sweep as a figure: the loss over one of the swept keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from hpcdl.cli.plans.plots import Panel, literal, save
from hpcdl.runs.sweeps.results import Result, loss_key
from hpcdl.spec.points import shown, value_text

_LEGEND = 12  # lines that a legend names
_WIDE = 30  # from the smallest to the largest value, as a factor, from which on an axis is logarithmic


def results(path: Path, name: str, found: Sequence[Result], over: str) -> None:
    """Draw the loss of each point over a key; points that differ in nothing else are joined.

    Args:
        path: of the figure, .svg or .png.
        name: of the sweep.
        found: at least one point with a loss.
        over: the key.
    """
    save(path, name, [Panel(lambda axes: _draw(axes, found, over), 5.0)])


def _draw(axes: Axes, found: Sequence[Result], over: str) -> None:
    key = loss_key(found)
    values = [each.values[over] for each in found]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    names = list(dict.fromkeys(value_text(value) for value in values))
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for each in found:
        loss, value = each.numbers[key], each.values[over]
        if loss is not None:
            place = float(value) if numeric else float(names.index(value_text(value)))
            lines[_others(each.values, over)].append((place, loss))
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=literal(label) or None)
    if numeric and min(values) > 0 and max(values) >= _WIDE * min(values):
        axes.set_xscale("log")
    if not numeric:
        axes.set_xticks(range(len(names)), map(literal, names), rotation=20)
    axes.set_xlabel(literal(over))
    axes.set_ylabel(key.replace("_", " "))
    if 1 < len(lines) <= _LEGEND:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)


def _others(values: Any, over: str) -> str:
    """What else tells a point apart."""
    return shown({key: value for key, value in values.items() if key != over})
