import pytest

from hpcdl.errors import InfeasibleError, UsageError
from hpcdl.planner.disturbance import Disturbance
from hpcdl.planner.estimate import step_tree
from hpcdl.planner.simulation import replicas, simulate_steps
from hpcdl.planner.space import Candidates
from hpcdl.sites.load import load_site
from hpcdl.spec.decomposition import Decomposition


@pytest.mark.parametrize(
    "d",
    [
        Decomposition(data=4, pipeline=4),
        Decomposition(data=2, pipeline=2, interleave=2, x=2, z=2),
        Decomposition(pipeline=4, x=2, y=2, defer_weights=True),
        Decomposition(data=16, recompute="full"),
    ],
)
def test_undisturbed_a_step_takes_what_the_estimate_says(case_on, d):
    """The closed form of plain pipelines is within a quarter of the machine, and mostly far closer."""
    case = case_on(nodes=4)
    estimate = float(step_tree(case, Candidates.of(d)).value[0])
    found = simulate_steps(case, d, Disturbance(), steps=2)
    near = 1e-6 if d.interleave > 1 or d.defer_weights or d.pipeline == 1 else 0.1
    assert found.undisturbed == pytest.approx(estimate, rel=near)
    assert found.samples == pytest.approx(found.undisturbed)


def test_tensor_axes_make_teams_and_data_makes_replicas(case_on):
    found = replicas(case_on(nodes=8), Decomposition(data=2, pipeline=2, x=2, y=2, z=2))
    assert (found.count, found.team, found.flow.ranks, found.flow.microbatches) == (2, 8, 2, 16)


def test_jitter_costs_the_same_ranks_more_where_more_of_them_must_wait_for_each_other(case_on):
    """Sixteen ranks as 16 replicas, which meet once a step, or as a team that meets in every operation."""
    case, jitter = case_on(nodes=4), Disturbance(jitter=0.1)
    loose, tight = (
        simulate_steps(case, d, jitter, steps=200) for d in (Decomposition(data=16), Decomposition(x=4, y=4))
    )
    assert loose.mean / loose.undisturbed < tight.mean / tight.undisturbed


def test_a_decomposition_that_cannot_run_is_refused_with_its_rule(case_on):
    with pytest.raises(
        InfeasibleError, match="parallelism: pipeline 9 × interleave 1 needs more layers"
    ) as no:
        simulate_steps(case_on(nodes=9, ranks_per_node=1), Decomposition(pipeline=9), Disturbance())
    assert "hpcdl plan" in no.value.hint


def test_ranks_that_share_cores_are_refused(case_on):
    node = next(node for node in load_site("local").nodes.values() if node.device.kind == "cpu")
    case = case_on(ranks_per_node=2 * node.usable_cores, node=node)
    many = 2 * node.usable_cores
    with pytest.raises(UsageError, match=f"{many} ranks a node share {node.usable_cores} cores") as refused:
        simulate_steps(case, Decomposition(data=many), Disturbance())
    assert f"at most {node.usable_cores} ranks" in refused.value.hint
