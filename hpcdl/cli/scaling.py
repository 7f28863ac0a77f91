"""``hpcdl plan --gpus 64,128,256``: what more devices bring, and what they cost."""

from __future__ import annotations

from rich.markup import escape

from hpcdl.cli import plan_tables, render
from hpcdl.cli.render import Row
from hpcdl.planner.rank import Candidate
from hpcdl.planner.scaling import Point, Scaling
from hpcdl.units import format_count, format_seconds


def table(found: Scaling) -> None:
    """A row for each number of devices; what cannot run is told below."""
    if found.running:
        render.line(_heading(found))
    render.table(_columns(found), (_row(point, found.tokens) for point in found.points))
    for point in found.points:
        if point.outcome.refusal:
            plan_tables.refusal(f"{point.gpus} devices", point.outcome.refusal)
    if len(found.running) > 1:
        render.line("[dim]● no other count is both faster and cheaper in node-hours[/]")


def _heading(found: Scaling) -> str:
    plans = [point.outcome.plan for point in found.running if point.outcome.plan]
    first, last = plans[0], plans[-1]
    batches = dict.fromkeys(str(each.case.training.global_batch) for each in (first, last))
    parameters, device = format_count(first.case.model.parameters), first.case.node.device.model
    return (
        f"[bold]{escape(first.experiment)}[/]: {parameters} parameters on {escape(device)} of "
        f"[bold]{first.site}[/], {' to '.join(batches)} x {first.case.model.sequence} tokens a step "
        f"({'weak' if found.weak else 'strong'} scaling){plan_tables.engine(first)}"
    )


def _columns(found: Scaling) -> dict[str, render.Side]:
    names = ("gpus", "nodes", "decomposition", *_figure_names(found.tokens), "front")
    return {name: "left" if name in ("decomposition", "front") else "right" for name in names}


def _figure_names(tokens: float | None) -> tuple[str, ...]:
    per = ("node-h/Gtoken", "node-h/step")
    price = per if tokens is None else (f"to {format_count(tokens)}", "node-hours")
    return ("step", "efficiency", "tokens/day", *price)


def _row(point: Point, tokens: float | None) -> Row:
    best = point.outcome.best
    if best is None:
        blanks = ["-"] * len(_figure_names(tokens))
        return Row([str(point.gpus), "-", "cannot run", *blanks, ""], "red")
    cells = [
        str(point.gpus),
        str(point.nodes),
        str(best.decomposition),
        format_seconds(best.step_seconds),
        f"{point.efficiency:.1%}",
        format_count(best.tokens_per_second * 86400),
        *_price(point, best, tokens),
        "●" if point.front else "",
    ]
    return Row(cells, "cyan" if point.front else None)


def _price(point: Point, best: Candidate, tokens: float | None) -> tuple[str, str]:
    """Of a billion tokens and of a step, or of the whole budget."""
    if tokens is None:
        return _count(point.node_hours(1e9)), _count(point.nodes * best.step_seconds / 3600)
    return format_seconds(point.hours(tokens) * 3600), _count(point.node_hours(tokens))


def _count(number: float) -> str:
    return format_count(number) if number >= 1e6 else f"{number:.3g}" if number < 1000 else f"{number:,.0f}"
