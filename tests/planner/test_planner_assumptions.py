"""What an estimate takes for granted is all there, and as it was used."""

from dataclasses import replace

import pytest

from hpcdl.planner import plan
from hpcdl.planner.assumptions import assumptions, untested
from hpcdl.planner.engines import find_engine
from hpcdl.sites.profile import Profile
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.job import Overlap


def values(case, d):
    return {(row.group, row.name): row.value for row in assumptions(case, d)}


def test_every_number_of_the_profile_is_named_with_its_source(case_on):
    case = case_on()
    rows = [row for row in assumptions(case, Decomposition(data=4)) if row.group == "efficiencies"]
    assert {row.name for row in rows} == set(Profile.model_fields) - {"source", "date", "products"}
    for row in rows:
        value = getattr(case.profile, row.name)
        assert (
            row.value == value
            if isinstance(value, str)
            else float(row.value) == pytest.approx(value, rel=1e-3)
        )
        assert row.meaning
        assert case.profile.source in row.source
        assert case.profile.date in row.source


def test_links_are_those_that_the_estimate_used(case_on):
    """225 of four directly linked A100, a third of that in pairs; 80 GB/s of injection shared by four rings."""
    case = case_on(nodes=4, intra_efficiency=1.0, inter_efficiency=1.0)
    found = values(case, Decomposition(x=4, data=4))
    assert found["communication", "link x"] == "300 GB/s"
    assert found["communication", "link data"] == "25 GB/s"
    assert ("communication", "link pipeline") not in found
    assert values(case, Decomposition(x=2, data=8))["communication", "link x"] == "100 GB/s"


def test_the_attention_kernel_and_what_overlaps_are_the_engines(case_on):
    case = case_on()
    found = values(case, Decomposition())
    assert found["engine", "attention"] == "flash"
    assert found["engine", "state"] == "2 + 4 + 12"
    assert {name for group, name in found if name.startswith("overlap ")} == {
        f"overlap {name}" for name in Overlap.model_fields
    }
    assert found["engine", "overlap gradient_reduction"] == "yes"


def test_an_overlap_that_is_off_is_said_to_be(case_on):
    case = replace(case_on(), overlap=Overlap(gradient_reduction=False))
    assert values(case, Decomposition())["engine", "overlap gradient_reduction"] == "no"


def test_sequence_precision_and_margin_are_printed(case_on):
    found = values(case_on(), Decomposition(data=4, microbatch=2))
    assert found["training", "sequence"] == "256"
    assert found["training", "precision"] == "bf16"
    assert found["memory", "margin"] == "5%"
    assert found["schedule", "microbatches"] == "8"


@pytest.mark.parametrize(
    ("d", "words"),
    [
        (Decomposition(data=4), ()),
        (Decomposition(x=4), ()),
        (Decomposition(x=2, y=2), ("untested: grids with more than one of x, y and z",)),
        (
            Decomposition(data=4, offload="optimizer"),
            ("untested: offload; no copy to or from a host was timed",),
        ),
    ],
)
def test_what_was_never_measured_is_said(case_on, d, words):
    assert untested(case_on(), d) == words


def test_an_amd_device_is_untested_and_the_plan_notes_it(case_on, perlmutter, experiment_of):
    gpu = perlmutter.nodes["gpu40"]
    device = gpu.device.model_copy(update={"model": "AMD Instinct MI250X", "kind": "gcd"})
    node = gpu.model_copy(update={"device": device})
    (words,) = untested(case_on(node=node), Decomposition(data=4))
    assert words.startswith("untested: AMD Instinct MI250X")
    site = perlmutter.model_copy(update={"nodes": {**perlmutter.nodes, "gpu40": node}})
    assert words in plan(experiment_of(), site, 4).best.notes


def test_a_cpu_is_untested(case_on, perlmutter):
    gpu = perlmutter.nodes["gpu40"]
    node = gpu.model_copy(update={"device": gpu.device.model_copy(update={"kind": "cpu"})})
    (words,) = untested(case_on(node=node), Decomposition(data=4, offload="optimizer"))
    assert words.startswith("untested: CPUs")


def test_another_engine_names_itself(experiment_of, perlmutter):
    found = plan(experiment_of(), perlmutter, 4, engine=find_engine("any"))
    rows = {row.name: row for row in assumptions(found.case, found.best.decomposition)}
    assert rows["engine"].value == "any"
    assert rows["engine"].source == find_engine("any").source
