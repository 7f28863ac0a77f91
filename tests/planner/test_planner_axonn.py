"""What the AxoNN papers say of grids, bandwidths and overlap (SC'24, arXiv 2502.08145)."""

from dataclasses import replace

import numpy as np
import pytest
from axonn_model import RUNS, Grid, case_of, chosen, communication, found
from axonn_scaling import months, scaling

from hpcdl.planner import comm
from hpcdl.planner.estimate import step_tree
from hpcdl.planner.fabric import Fabric
from hpcdl.planner.space import Candidates
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.job import Overlap

PURE_DEPTH = [run for run in RUNS if run[2] <= 8192]
NOTHING = Overlap(**dict.fromkeys(Overlap.model_fields, False))
# Figure 5: GPT-80B on 8192 GCDs, seconds a batch with no overlap and with OAR, ORS and OAG added in turn.
OVERLAPS = [
    ((), 22.74),
    (("input_gradient",), 22.23),
    (("input_gradient", "weight_scatter"), 21.26),
    (("input_gradient", "weight_scatter", "weight_gather"), 18.49),
]


def seconds(case, *switches, **degrees):
    case = replace(case, overlap=NOTHING.model_copy(update=dict.fromkeys(switches, True)))
    return float(step_tree(case, Candidates.of(Decomposition(recompute="full", **degrees))).value[0])


@pytest.mark.parametrize(("machine", "model", "gpus"), PURE_DEPTH)
def test_up_to_8192_devices_weights_over_z_alone_are_fastest(machine, model, gpus):
    """At 16.8 M tokens; by the planner, for AxoNN, and by AxoNN's own model with the planner's bandwidths."""
    case = case_of(machine, model, gpus)
    depth = Grid(1, 1, gpus, 1)
    assert found(case)[0] == depth
    assert chosen(case)[0] == chosen(case, as_run=False)[0] == depth


@pytest.mark.parametrize(
    ("model", "gpus", "grid"), [("160B", 16384, Grid(2, 1, 8192, 1)), ("320B", 32768, Grid(2, 8, 2048, 1))]
)
def test_with_more_devices_than_sequences_axonns_model_chooses_these_grids(model, gpus, grid):
    assert chosen(case_of("Frontier", model, gpus))[0] == grid


def test_those_grids_follow_from_the_widths_of_one_matrix():
    """By its equations alone x sums a quarter as much of mlp.down, and larger x and y win, as in the planner."""
    case = case_of("Frontier", "160B", 16384)
    c = Candidates.grids(
        **{axis: np.array(degrees) for axis, degrees in (("x", [2, 8]), ("y", [1, 2]), ("z", [8192, 1024]))}
    )
    as_run, by_equations = (communication(case, c, as_run=quirk) for quirk in (True, False))
    assert as_run[0] < as_run[1]
    assert by_equations[1] < by_equations[0]
    assert found(case)[1] < seconds(case, *Overlap.model_fields, x=2, z=8192)


def test_its_equations_are_the_planners_volumes():
    """Without start-up and overlap, what the planner counts of a layer is equations 1 to 5."""
    case = case_of("Frontier", "80B", 8192)
    silent = dict(collective_latency_s=0.0, hop_latency_s=0.0, network_latency_s=0.0)
    case = replace(case, profile=case.profile.model_copy(update=silent))
    d = Decomposition(x=8, z=1024, microbatch=8)
    f = Fabric(case, c := Candidates.of(d))
    layer = sum(3 * each.gather + 2 * each.forward + each.backward for each in comm.linears(f))
    assert case.model.layers * layer[0] == pytest.approx(communication(case, c, as_run=False)[0])


def test_overlaps_save_what_they_saved_on_8192_gcds():
    """Its grid is not printed. Seen with weights over z alone: 23.7, 23.7, 20.4 and 16.3 s."""
    case = case_of("Frontier", "80B", 8192)
    steps = [seconds(case, *switches, z=8192) for switches, _ in OVERLAPS]
    assert steps == sorted(steps, reverse=True)
    for step, (_, measured) in zip(steps, OVERLAPS, strict=True):
        assert step == pytest.approx(measured, rel=0.12)


def test_hiding_costs_computing_about_what_it_did():
    """Measured: 11.83 s of computing without overlap and 12.38 s with all of it. Seen: 1.1 s."""
    case = replace(case_of("Frontier", "80B", 8192), overlap=Overlap())
    tree = step_tree(case, Candidates.of(Decomposition(z=8192, recompute="full")))
    price = next(float(leaf.value[0]) for leaf in tree.leaves() if leaf.name == "overlapped compute")
    assert 0.3 < price < 1.5


def test_scaling_has_the_shape_of_the_published_curves():
    """Not the height: nothing is fitted to it. Weak scaling on Frontier ends at about twice the time."""
    weak, strong = scaling()
    frontier = [one.prediction.seconds for one in weak if one.row.machine.startswith("Frontier")]
    assert 1.5 < frontier[-1] / frontier[0] < 2.5  # published: 31.43 s of 17.74
    times = [months(one.prediction.seconds, one) for one in strong if one.row.model == "GPT-80B"]
    assert 40 < times[0] / times[-1] < 64  # 128 to 8192 GCDs; published: 56
