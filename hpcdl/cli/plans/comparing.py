"""``hpcdl plan --compare`` and ``--what-if``: two plans side by side, term by term."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hpcdl.cli import render
from hpcdl.cli.plans import asking, tables
from hpcdl.cli.plans.asking import Ask, View
from hpcdl.cli.render import Row
from hpcdl.errors import InfeasibleError
from hpcdl.planner.comparison import Change, Comparison
from hpcdl.planner.explain import described
from hpcdl.planner.question import Outcome
from hpcdl.planner.whatif import changed
from hpcdl.units import GIB, format_bytes, format_count, format_seconds
from hpcdl.workflow.studies import studying

_NOTHING = 1e-9  # what rounding leaves
_SHOWN = 0.002  # terms below this share of a step, or of the memory, are left out

_FIGURES = {
    "step_seconds": ("step", format_seconds),
    "tokens_per_second": ("tokens/s", format_count),
    "tflops_per_gpu": ("TFLOP/s a device", lambda value: f"{value:.3g}"),
    "mfu": ("of peak", lambda value: f"{value:.1%}"),
    "memory_gib": ("memory", lambda value: format_bytes(value * GIB)),
    "host_memory_gib": ("host memory", lambda value: format_bytes(value * GIB)),
}


def show(ask: Ask, view: View) -> None:
    """Plan twice, and show both.

    Raises:
        InfeasibleError: after showing why, where neither can run.
        UsageError: values that make no sense.
    """
    with render.busy("planning"):
        found = _compared(ask)
    if view.json:
        render.print_json(found.to_json())
    else:
        side_by_side(found)
    runs = any(outcome.best for outcome in found.outcomes)
    if view.plot and runs:
        asking.plots(view.plot).comparison(view.plot, found)
    if not runs:
        raise InfeasibleError(f"neither {' nor '.join(found.names)} can run")


def _compared(ask: Ask) -> Comparison:
    inputs = studying.read(ask.request(ask.file))
    first, gpus = asking.question(ask, inputs), asking.devices(inputs)
    if ask.compare is None:
        other, names = changed(first, ask.what_if), ("now", ", ".join(ask.what_if))
        return Comparison(names, (first.ask(gpus), other.ask(gpus)))
    others = studying.read(ask.request(ask.compare))
    second = asking.question(ask, others).ask(asking.devices(others))
    return Comparison(_names(ask.file, ask.compare), (first.ask(gpus), second))


def _names(first: Path, second: Path) -> tuple[str, str]:
    """File names, with their folders where they would be the same."""
    if first.name == second.name:
        return str(first), str(second)
    return first.stem, second.stem


def side_by_side(found: Comparison) -> None:
    """Two bests, then the terms that differ."""
    for name, outcome in zip(found.names, found.outcomes, strict=True):
        _side(name, outcome)
    if found.speedup is None:
        return
    render.table(_sides(found, "", "ratio"), map(_figure, found.figures))
    render.plain("")
    render.table(_sides(found, "seconds of a step", "difference"), _differing(found.seconds, format_seconds))
    render.plain("")
    memory = _differing(found.gib, lambda gib: format_bytes(gib * GIB))
    render.table(_sides(found, "memory of a rank", "difference"), memory)
    colour = "green" if found.speedup >= 1 else "red"
    render.plain(f"{found.names[1]}: {found.speedup:.3g} times the tokens a second", colour)


def _side(name: str, outcome: Outcome) -> None:
    if outcome.best and outcome.plan:
        render.line(tables.heading(outcome.plan))
        render.plain(f"  {name}: {described(outcome.best.decomposition)}", "green")
    elif outcome.refusal:
        tables.refusal(name, outcome.refusal)


def _sides(found: Comparison, what: str, last: str) -> dict[str, render.Side]:
    first, second = found.names
    return {what: "left", first: "right", second: "right", last: "right"}


def _figure(change: Change) -> Row:
    name, show = _FIGURES[change.name]
    before, after = change.before or 0.0, change.after or 0.0
    ratio = f"{after / before:.3g}x" if before and after else "-"
    return Row([name, show(before), show(after), ratio])


def _differing(changes: Sequence[Change], show: Callable[[float], str]) -> Iterator[Row]:
    whole = max(
        sum(values) for values in zip(*((c.before or 0.0, c.after or 0.0) for c in changes), strict=True)
    )
    for change in changes:
        if max(change.before or 0.0, change.after or 0.0) >= _SHOWN * whole:
            yield _difference(change, show, whole)


def _difference(change: Change, show: Callable[[float], str], whole: float) -> Row:
    sides = [show(side) if side and side > _NOTHING * whole else "-" for side in change[1:]]
    if sides[0] == sides[1]:
        return Row([change.name, *sides, "="])
    sign, colour = ("-", "green") if change.difference < 0 else ("+", "red")
    return Row([change.name, *sides, sign + show(abs(change.difference))], colour)
