"""``hpcdl plan``."""

from __future__ import annotations

from hpcdl import workflow
from hpcdl.cli import render
from hpcdl.errors import HpcdlError, InfeasibleError, UsageError
from hpcdl.planner.explain import explain as explanation
from hpcdl.planner.layout import layout
from hpcdl.planner.plan import Plan


def show(request: workflow.Request, *, top: int, explain: int | None, json: bool) -> None:
    """Plan and show the candidates, or one of them in detail.

    Raises:
        InfeasibleError: after showing an explicit decomposition that cannot run.
        UsageError: there is no candidate of that rank, or nothing to plan.
    """
    with render.busy("planning"):
        study = workflow.study(request)
    plan = _plan_of(study)
    if json:
        render.print_json(plan.to_json())
    elif explain is None:
        render.plan(study, plan, top)
    else:
        render.explanation(study, explanation(plan, explain))
    if not json:
        render.warnings(plan)
        _warn_of_limits(study)
    if plan.infeasible:
        raise InfeasibleError(plan.infeasible)


def _plan_of(study: workflow.Study) -> Plan:
    if study.plan is None:
        raise UsageError(
            "hpcdl plan knows what transformers cost, but nothing of a model of your own (model.entry)",
            f"submit it: it would run {study.decomposition}",
        )
    return study.plan


def _warn_of_limits(study: workflow.Study) -> None:
    """A plan may look past the limits of a queue; a submission may not."""
    try:
        layout(study.experiment.resources, study.site)
    except HpcdlError as error:
        render.warning(f"submit would refuse this: {error.message}", error.hint)
