"""The plans of one experiment on a terminal: ranked candidates, and one of them taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.markup import escape

from hpcdl.cli import render
from hpcdl.cli.render import Row
from hpcdl.errors import HpcdlError
from hpcdl.planner.assumptions import Assumption
from hpcdl.planner.plan import Plan
from hpcdl.planner.rank import Candidate, offloaded
from hpcdl.spec.decomposition import Decomposition
from hpcdl.units import GIB, format_bytes, format_count, format_seconds

_DEGREES = {"data": "data", "pipeline": "pipe", "x": "x", "y": "y", "z": "z", "microbatch": "micro"}
_FIGURES = ("step", "tokens/s", "TFLOP/s", "memory")
# Shown only where some candidate differs from what a decomposition is by default.
_SELDOM = {
    "context": "ctx", "expert": "expert", "sequence_parallel": "seq", "zero": "zero", "interleave": "chunks",
    "defer_weights": "defer", "in_flight": "in flight", "recompute_every": "every", "order": "order",
}  # fmt: skip
_PLAIN = Decomposition()


def warnings(plan: Plan) -> None:
    """What a plan warns of."""
    for words in plan.warnings:
        render.warning(words, None)


def plan(found: Plan, top: int) -> None:
    """The ranked candidates as a table, with what was refused."""
    render.line(heading(found))
    best = "red" if found.infeasible else "green"
    shown = found.candidates[:top]
    seldom = [name for name in _SELDOM if any(_differs(each, name) for each in shown)]
    names = ("#", *_DEGREES.values(), *(_SELDOM[name] for name in seldom), "recomp", "offload", *_FIGURES)
    rows = (Row(_candidate(each, seldom), best if each.rank == 1 else None) for each in shown)
    render.table(dict.fromkeys(names, "right"), rows)
    _footer(found, top)


def _differs(candidate: Candidate, name: str) -> bool:
    verdict: bool = getattr(candidate.decomposition, name) != getattr(_PLAIN, name)
    return verdict


def explanation(found: Plan, lines: Sequence[str]) -> None:
    """One candidate taken apart."""
    render.line(heading(found))
    for words in lines:
        render.plain(words, "bold" if words.startswith("rank ") else "")


def assumptions(found: Sequence[Assumption], missing: Sequence[str]) -> None:
    """What an estimate takes for granted, group by group, and where nothing was measured."""
    for (group, source), rows in groupby(found, key=lambda row: (row.group, row.source)):
        render.line(f"\n[bold]{group}[/] [dim]({escape(source)})[/]")
        for row in rows:
            render.plain(f"  {row.name:26}  {row.value:>15}  {row.meaning}")
    for words in missing:
        render.plain(words, "yellow")


def heading(found: Plan) -> str:
    """What was asked, as markup."""
    place, device = found.layout, found.case.node.device.model
    return (
        f"[bold]{escape(found.experiment)}[/]: {format_count(found.case.model.parameters)} parameters on "
        f"{place.ranks} x {escape(device)} of [bold]{escape(found.site)}[/] "
        f"({place.nodes} node{'s' * (place.nodes > 1)} x {place.ranks_per_node}){engine(found)}"
    )


def engine(found: Plan) -> str:
    """Which engine is to run it, where it is not hpcdl's own."""
    name = found.case.engine.name
    return "" if name == "hpcdl" else f", engine {name}"


def _candidate(candidate: Candidate, seldom: Sequence[str]) -> list[str]:
    d = candidate.decomposition
    return [
        str(candidate.rank),
        *(str(getattr(d, name)) for name in _DEGREES),
        *(_word(getattr(d, name)) for name in seldom),
        d.recompute,
        offloaded(d),
        format_seconds(candidate.step_seconds),
        format_count(candidate.tokens_per_second),
        f"{candidate.tflops_per_gpu:.3g}",
        format_bytes(candidate.memory_gib * GIB),
    ]


def _word(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "yes" if value else "-"
    return str(value)


def _footer(found: Plan, top: int) -> None:
    hidden = max(0, found.feasible - top)
    more = f", {hidden} slower ones not shown" if hidden else ""
    candidates = "1 candidate" if found.evaluated == 1 else f"{found.evaluated} candidates"
    searched = f"{candidates} in {format_seconds(found.search_seconds)}"
    render.plain(f"{searched}: {found.feasible} feasible{more}", "dim")
    if found.slower:
        render.plain(f"  {found.slower} left out: whether they fit or not, they are slower", "dim")
    for reason, count in found.refused.items():
        render.plain(f"  {count} refused: {reason}", "dim")
    if found.candidates and not found.infeasible:
        render.line(f"would run [bold]{found.best.decomposition}[/]; why: hpcdl plan ... --explain 1")


def refusal(name: str, reason: HpcdlError) -> None:
    """Why something cannot run, and the way out."""
    render.plain(f"{name} cannot run: {reason.message}", "red")
    if reason.hint:
        render.plain(f"  {reason.hint}")
