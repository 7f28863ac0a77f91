"""``hpcdl plan``: reads what is asked, and shows one plan, several, or two side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hpcdl.cli import render
from hpcdl.cli.plans import asking, tables
from hpcdl.cli.plans.asking import Ask, View
from hpcdl.errors import HpcdlError, InfeasibleError
from hpcdl.planner.assumptions import assumptions, untested
from hpcdl.planner.explain import chosen, explain, explanation
from hpcdl.planner.layout import layout
from hpcdl.planner.plan import Plan
from hpcdl.workflow.studies import studying


def show(ask: Ask, view: View) -> None:
    """Plan, and show what was found.

    Raises:
        InfeasibleError: after showing it, where nothing of it can run.
        KeyboardInterrupt: stopped before there was a plan, which is said.
        UsageError: flags that do not go together, or values that make no sense.
    """
    asking.check(ask, view)
    try:
        _plan(ask, view)
    except KeyboardInterrupt:
        render.warning("stopped before there was a plan to show", None)
        raise


def _plan(ask: Ask, view: View) -> None:
    if view.plot:
        asking.plots(view.plot)
    if ask.several:
        from hpcdl.cli.plans import scaling

        scaling.show(ask, view)
    elif ask.compare or ask.what_if:
        from hpcdl.cli.plans import comparing

        comparing.show(ask, view)
    else:
        _one(ask, view)


def _one(ask: Ask, view: View) -> None:
    inputs = studying.read(ask.request(ask.file))
    with render.progress_of("planning") as watch:
        plan = asking.question(ask, inputs).plan(asking.devices(inputs), watch)
    if view.json:
        render.print_json(_document(plan, view))
    else:
        _screen(plan, view)
        tables.warnings(plan)
        _warn_of_limits(inputs)
    if view.plot:
        asking.plots(view.plot).plan(view.plot, plan, chosen(plan, view.explain or 1), view.top)
    if plan.infeasible:
        raise InfeasibleError(plan.infeasible)


def _document(plan: Plan, view: View) -> dict[str, Any]:
    """The plan as JSON, with what else was asked for under names of its own."""
    document = plan.to_json()
    candidate = chosen(plan, view.explain or 1)
    if view.explain:
        document["explanation"] = explanation(plan, view.explain)
    if view.assumptions:
        rows = assumptions(plan.case, candidate.decomposition)
        document["assumptions"] = [asdict(row) for row in rows]
    if view.simulate:
        document["simulation"] = view.simulate.to_json(view.simulate.run(plan, candidate))
    return document


def _screen(plan: Plan, view: View) -> None:
    if view.explain is None:
        tables.plan(plan, view.top)
    else:
        tables.explanation(plan, explain(plan, view.explain))
    candidate = chosen(plan, view.explain or 1)
    if view.assumptions:
        asked = plan.case, candidate.decomposition
        tables.assumptions(assumptions(*asked), untested(*asked))
    if view.simulate:
        view.simulate.show(plan, candidate)


def _warn_of_limits(inputs: studying.Inputs) -> None:
    """A plan may look past the limits of a queue; a submission may not."""
    try:
        layout(inputs.experiment.resources, inputs.site, inputs.document)
    except HpcdlError as error:
        render.warning(f"submit would refuse this: {error.message}", error.hint)
