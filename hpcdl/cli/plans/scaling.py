"""``hpcdl plan --gpus 64,128,256``: what more devices bring, and what they cost."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from hpcdl.cli import render
from hpcdl.cli.plans import asking, tables
from hpcdl.cli.plans.asking import Ask, View
from hpcdl.cli.render import Row
from hpcdl.errors import HpcdlError, InfeasibleError, UsageError
from hpcdl.planner.layout import layout
from hpcdl.planner.question import Question
from hpcdl.planner.rank import Candidate
from hpcdl.planner.scaling import Point, Scaling, scaling
from hpcdl.planner.whatif import changed
from hpcdl.units import format_count, format_seconds, parse_count
from hpcdl.workflow.studies import studying


def show(ask: Ask, view: View) -> None:
    """Plan for each number of devices, and show what was found.

    Raises:
        InfeasibleError: after showing it, where none can run.
        UsageError: values that make no sense.
    """
    tokens = None if ask.tokens is None else _tokens(ask.tokens)
    inputs = studying.read(ask.request(ask.file))
    question = changed(asking.question(ask, inputs), ask.what_if)
    gpus = ask.counts or (asking.devices(inputs),)
    with render.progress_of("planning") as watch:
        found = scaling(question, gpus, weak=ask.weak, tokens=tokens, watch=watch)
    if view.json:
        render.print_json(_asked(question, ask) | found.to_json())
    else:
        table(found)
        if ask.what_if:
            render.plain(f"all of this if {', '.join(ask.what_if)}", "yellow")
        _warn_of_limits(question, found)
    if view.plot and found.running:
        asking.plots(view.plot).scaling(view.plot, found)
    if not found.running:
        raise InfeasibleError(f"{question.experiment.name} can run on none of these numbers of devices")


def _warn_of_limits(question: Question, found: Scaling) -> None:
    """What a submission would refuse, and why it would refuse the fewest devices of each kind of reason."""
    asked = question.experiment.resources
    refused: dict[type[HpcdlError], list[tuple[int, HpcdlError]]] = {}
    for point in found.running:
        try:
            layout(asked.model_copy(update={"gpus": point.gpus, "nodes": None}), question.site)
        except HpcdlError as error:
            refused.setdefault(type(error), []).append((point.gpus, error))
    for those in refused.values():
        numbers, first = ", ".join(str(gpus) for gpus, _ in those), those[0][1]
        render.warning(f"submit would refuse {numbers} devices: {first.message}", first.hint)


def _asked(question: Question, ask: Ask) -> dict[str, Any]:
    return {
        "experiment": question.experiment.name,
        "site": question.site.name,
        "engine": question.engine.name,
        "what_if": list(ask.what_if),
    }


def _tokens(text: str) -> float:
    try:
        return parse_count(text)
    except ValueError as error:
        raise UsageError(f"--tokens: {error}") from None


def table(found: Scaling) -> None:
    """A row for each number of devices; what cannot run is told below."""
    if found.running:
        render.line(_heading(found))
    render.table(_columns(found), (_row(point, found.tokens) for point in found.points))
    for point in found.points:
        if point.outcome.refusal:
            tables.refusal(f"{point.gpus} devices", point.outcome.refusal)
    if found.points[-1].interrupted:
        render.plain("stopped: the last row is the best so far, larger numbers were not looked at", "yellow")
    if len(found.running) > 1:
        render.plain("● no other count is both faster and cheaper in node-hours", "dim")


def _heading(found: Scaling) -> str:
    plans = [point.outcome.plan for point in found.running if point.outcome.plan]
    first, last = plans[0], plans[-1]
    batches = dict.fromkeys(str(each.case.training.global_batch) for each in (first, last))
    parameters, device = format_count(first.case.model.parameters), first.case.node.device.model
    return (
        f"[bold]{escape(first.experiment)}[/]: {parameters} parameters on {escape(device)} of "
        f"[bold]{escape(first.site)}[/], {' to '.join(batches)} x {first.case.model.sequence} tokens a step "
        f"({'weak' if found.weak else 'strong'} scaling){tables.engine(first)}"
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
