"""Steps of a decomposition, simulated with what disturbs them: a distribution, not one number.

The ranks of x, y and z are a team: weights are gathered over z for every layer, so none of them gets ahead of
the others. What runs beside each other are the ``data`` replicas, which meet when gradients are reduced.
"""

from __future__ import annotations

from hpcdl.errors import InfeasibleError, UsageError
from hpcdl.planner.case import Case
from hpcdl.planner.disturbance import Disturbance
from hpcdl.planner.estimate import undisturbed
from hpcdl.planner.replicas import Replicas, StepTimes, step_times
from hpcdl.planner.space import Candidates
from hpcdl.spec.decomposition import Decomposition, violations


def simulate_steps(
    case: Case, d: Decomposition, disturbance: Disturbance, steps: int = 100, seed: int = 0
) -> StepTimes:
    """The distribution of the step time of ``d``.

    Args:
        case: the model, its training and the machine.
        d: how it is spread over ranks.
        disturbance: what goes wrong.
        steps: how many to simulate; each has disturbances of its own.
        seed: the same seed, the same steps.

    Raises:
        InfeasibleError: ``d`` breaks a rule, with its words.
        UsageError: ranks share cores, or steps, seed or disturbance that cannot be simulated.
    """
    return step_times(replicas(case, d), disturbance, steps, seed)


def replicas(case: Case, d: Decomposition) -> Replicas:
    """The pipelines of ``d``, with what the estimate says of them.

    Raises:
        InfeasibleError: ``d`` breaks a rule, with its words.
        UsageError: ranks share cores.
    """
    reasons = violations(d, case.model, case.training.global_batch)
    if reasons:
        words = "\n".join(f"parallelism: {reason}" for reason in reasons.values())
        raise InfeasibleError(words, "hpcdl plan lists decompositions that can run")
    if case.crowding > 1:
        raise UsageError(
            f"{case.layout.ranks_per_node} ranks a node share {case.node.usable_cores} cores; how they take "
            "turns is not simulated",
            f"ask for at most {case.node.usable_cores} ranks a node",
        )
    return Replicas(*undisturbed(case, Candidates.of(d)), count=d.data, team=d.x * d.y * d.z)
