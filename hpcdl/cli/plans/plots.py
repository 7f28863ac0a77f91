"""Plans as figures: the only module that imports matplotlib, which is an extra (``hpcdl[plot]``)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpcdl.errors import UsageError
from hpcdl.planner.case import Case
from hpcdl.planner.comparison import Comparison
from hpcdl.planner.estimate import undisturbed
from hpcdl.planner.explain import described
from hpcdl.planner.pipeline import Span, timeline
from hpcdl.planner.plan import Plan
from hpcdl.planner.rank import Candidate
from hpcdl.planner.scaling import Point, Scaling
from hpcdl.planner.space import Candidates
from hpcdl.stage import Operation
from hpcdl.units import GIB, format_count

_SECONDS, _GIB = "seconds of a step", "GiB of the fullest rank's device"
_LEAST = 0.01  # terms below this share of every bar are drawn as one
_BARS = 10  # candidates that are drawn
_LABEL = 0.06  # of an axis, room for one label
_MANY = 4000  # operations beyond which a timeline is drawn as an image, which keeps the file small
_OPERATIONS = {Operation.FORWARD: "tab:blue", Operation.BACKWARD: "tab:orange", Operation.WEIGHT: "tab:green"}
# One colour a term in every figure: twenty of them, then the same hatched.
_PALETTE = mpl.colormaps["tab20"]
_HATCHES = ("", "//", "..", "xx")


class Panel(NamedTuple):
    """One part of a figure, and how high it is."""

    draw: Callable[[Axes], None]
    inches: float = 3.6


def plan(path: Path, found: Plan, candidate: Candidate, top: int) -> None:
    """Time and memory of the ``top`` candidates, as far as a figure has room, and the pipeline of one."""
    shown = found.candidates[: min(top, _BARS)]
    names = [f"{each.rank}: {_label(each)}" for each in shown]
    panels = [
        _bars_panel(names, [each.breakdown for each in shown], _SECONDS),
        _bars_panel(names, [each.memory_breakdown for each in shown], _GIB, _limits([found])),
    ]
    if not candidate.refusals and candidate.decomposition.pipeline > 1:
        panels.append(Panel(lambda axes: _pipeline(axes, found.case, candidate)))
    save(path, _title(found), panels)


def scaling(path: Path, found: Scaling) -> None:
    """What more devices bring: tokens a day, node-hours against time, and where the step goes."""
    running = found.running
    names = [f"{point.gpus}: {point.outcome.best.decomposition}" for point in running if point.outcome.best]
    bests = [point.outcome.best for point in running if point.outcome.best]
    shares = [{name: value / best.step_seconds for name, value in best.breakdown.items()} for best in bests]
    panels = [
        Panel(lambda axes: _curve(axes, running)),
        Panel(lambda axes: _front(axes, running, found.tokens or 1e9)),
        _bars_panel(names, shares, "share of a step"),
    ]
    plans = [point.outcome.plan for point in running if point.outcome.plan]
    save(
        path,
        f"{plans[0].experiment} on {plans[0].site}, {'weak' if found.weak else 'strong'} scaling",
        panels,
    )


def comparison(path: Path, found: Comparison) -> None:
    """Time and memory of two bests."""
    sides = [
        (name, outcome.best, outcome.plan)
        for name, outcome in zip(found.names, found.outcomes, strict=True)
        if outcome.best and outcome.plan
    ]
    names = [f"{name}: {_label(best)}" for name, best, _ in sides]
    bests = [best for _, best, _ in sides]
    plans = [plan for *_, plan in sides]
    panels = [
        _bars_panel(names, [best.breakdown for best in bests], _SECONDS),
        _bars_panel(names, [best.memory_breakdown for best in bests], _GIB, _limits(plans)),
    ]
    save(path, "\n".join(dict.fromkeys(map(_title, plans))), panels)


def _label(candidate: Candidate) -> str:
    """Degrees on one line, what else was chosen below."""
    return described(candidate.decomposition).replace(", ", "\n", 1)


def _title(found: Plan) -> str:
    parameters, device = format_count(found.case.model.parameters), found.case.node.device.model
    return f"{found.experiment}: {parameters} parameters on {found.gpus} x {device}"


def literal(text: str) -> str:
    """A text for a figure in which a $ begins no mathematics."""
    return text.replace("$", r"\$")


def save(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draw one panel below the other; the file is whole or not there."""
    heights = [panel.inches for panel in panels]
    figure = Figure(figsize=(11, 0.6 + sum(heights)), layout="constrained")
    figure.suptitle(literal(title))
    places = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel in zip(places, panels, strict=True):
        panel.draw(axes)
    drawn = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "hpcdl"}):  # the same plan, the same bytes
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(drawn, format=path.suffix[1:], metadata=metadata, dpi=130)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_bytes(drawn.getvalue())
        unfinished.replace(path)
    except OSError as error:
        raise UsageError(f"--plot {path} cannot be written: {error}") from None


# --- bars of terms -------------------------------------------------------------------------------


def _limits(plans: Sequence[Plan]) -> tuple[float, ...]:
    """What the devices hold, GiB."""
    return tuple(dict.fromkeys(each.case.memory_bytes / GIB for each in plans))


def _bars_panel(
    names: Sequence[str], breakdowns: Sequence[Mapping[str, float]], what: str, limits: Sequence[float] = ()
) -> Panel:
    def draw(axes: Axes) -> None:
        _bars(axes, names, breakdowns)
        axes.set_xlabel(what)
        for limit in limits:
            axes.axvline(limit, color="black", linewidth=2)
            axes.text(limit, -0.7, f"{limit:.0f} GiB ", ha="right", va="center")

    return Panel(draw, max(2.2, 1.0 + 0.3 * len(names)))


def _bars(axes: Axes, names: Sequence[str], breakdowns: Sequence[Mapping[str, float]]) -> None:
    """Stacked bars from the top down, one colour a term."""
    begins = [0.0] * len(breakdowns)
    for term, look, values in _terms(breakdowns):
        axes.barh(range(len(values)), values, left=begins, label=term, height=0.7, **look)
        begins = [begin + value for begin, value in zip(begins, values, strict=True)]
    axes.set_yticks(range(len(names)), map(literal, names), fontsize=7)
    axes.set_ylim(len(names) - 0.4, -1)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)


def _terms(breakdowns: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, dict[str, Any], list[float]]]:
    """Each term with its colour and its value in every bar; the small ones together, in grey."""
    totals = [sum(breakdown.values()) for breakdown in breakdowns]
    rest = list(totals)
    for place, term in enumerate(breakdowns[0]):
        values = [breakdown[term] for breakdown in breakdowns]
        if any(value >= _LEAST * total for value, total in zip(values, totals, strict=True)):
            rest = [left - value for left, value in zip(rest, values, strict=True)]
            yield term, {"color": _PALETTE(place % 20), "hatch": _HATCHES[place // 20]}, values
    if any(left > _LEAST * total / 10 for left, total in zip(rest, totals, strict=True)):
        yield "smaller terms", {"color": "lightgrey"}, rest


# --- several numbers of devices ------------------------------------------------------------------


def _curve(axes: Axes, points: Sequence[Point]) -> None:
    gpus = [point.gpus for point in points]
    days = [point.tokens_per_second * 86400 for point in points]
    axes.loglog(gpus, [days[0] * count / gpus[0] for count in gpus], "--", color="grey", label="ideal")
    axes.loglog(gpus, days, "o-", label="best decomposition")
    for point, height in zip(points, days, strict=True):
        axes.annotate(f"{point.efficiency:.0%}", (point.gpus, height), (4, -12), textcoords="offset points")
    axes.margins(y=0.1)
    axes.set_xticks(shown := _apart(gpus), map(str, shown))
    axes.set_yticks(shown := _apart(days), map(format_count, shown))
    axes.minorticks_off()
    axes.set_xlabel("devices")
    axes.set_ylabel("tokens a day")
    axes.legend(frameon=False)


def _apart(values: Sequence[float]) -> list[float]:
    """Those of ``values`` whose labels do not cover each other on a logarithmic axis."""
    least = (max(values) / min(values)) ** _LABEL
    chosen: list[float] = []
    for value in sorted(values):
        if not chosen or value >= least * chosen[-1]:
            chosen.append(value)
    return chosen


def _front(axes: Axes, points: Sequence[Point], tokens: float) -> None:
    days = [point.hours(tokens) / 24 for point in points]
    axes.plot(days, [point.node_hours(tokens) for point in points], "o", color="lightgrey")
    front = [point for point in points if point.front]
    places = [(point.hours(tokens) / 24, point.node_hours(tokens)) for point in front]
    axes.plot(*zip(*places, strict=True), "o-", color="tab:green", label="no other is faster and cheaper")
    for point, day in zip(points, days, strict=True):
        axes.annotate(str(point.gpus), (day, point.node_hours(tokens)), (4, 4), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xticks(shown := _apart(days), [f"{day:.3g}" for day in shown])
    axes.minorticks_off()
    axes.set_xlabel(f"days to {format_count(tokens)} tokens")
    axes.set_ylabel("node-hours")
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


# --- the pipeline --------------------------------------------------------------------------------


def _pipeline(axes: Axes, case: Case, candidate: Candidate) -> None:
    """What each rank of the pipeline does and when; of a long batch only as much as shows the pattern."""
    d = candidate.decomposition
    one = undisturbed(case, Candidates.of(d))
    shown = min(one.flow.microbatches, max(8, 3 * one.flow.ranks))
    flow = replace(one.flow, microbatches=shown)
    spans = timeline(flow, one.forward, one.backward, one.weight, one.hop)
    for (rank, operation), run in _by_rank(spans).items():
        axes.broken_barh(
            [(span.start, span.end - span.start) for span in run],
            (rank - 0.4, 0.8),
            facecolor=_OPERATIONS[operation],
            edgecolor="white",
            linewidth=0.3,
            label=operation.value if rank == 0 else None,
            rasterized=len(spans) > _MANY,
        )
    axes.set_ylim(flow.ranks - 0.5, -0.5)
    axes.set_xlim(0, max(span.end for span in spans))
    axes.set_xlabel("seconds")
    axes.set_ylabel("stage")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    part = "all" if shown == one.flow.microbatches else f"{shown} of {one.flow.microbatches}"
    axes.set_title(f"pipeline of {candidate.rank}: {d}, {part} microbatches", fontsize=10)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)


def _by_rank(spans: Sequence[Span]) -> dict[tuple[int, Operation], list[Span]]:
    found: dict[tuple[int, Operation], list[Span]] = {}
    for span in spans:
        if span.operation in _OPERATIONS and span.end > span.start:
            found.setdefault((span.rank, span.operation), []).append(span)
    return found
