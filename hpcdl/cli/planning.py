"""``hpcdl plan``."""

from __future__ import annotations

from hpcdl import workflow
from hpcdl.cli import render
from hpcdl.errors import InfeasibleError, UsageError


def show(request: workflow.Request, *, top: int, explain: int | None, json: bool) -> None:
    """Plan and show the candidates, or one of them in detail.

    Raises:
        InfeasibleError: after showing an explicit decomposition that cannot run.
        UsageError: there is no candidate of that rank.
    """
    with render.busy("planning"):
        study = workflow.study(request)
    plan = study.plan
    if json:
        render.print_json(plan.to_json())
    elif explain is None:
        render.plan(study, top)
    elif explain <= len(plan.candidates):
        render.candidate(study, plan.candidates[explain - 1])
    else:
        raise UsageError(f"--explain {explain}: the plan has candidates 1 to {len(plan.candidates)}")
    if plan.infeasible:
        raise InfeasibleError(plan.infeasible)
