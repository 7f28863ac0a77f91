"""The planner as a library: what docs/planner/api.md promises."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hpcdl.planner
from hpcdl.errors import InfeasibleError
from hpcdl.planner import Candidate, Plan, estimate, plan
from hpcdl.planner.engines import find_engine
from hpcdl.sites.profile import default_profile
from hpcdl.spec.decomposition import Decomposition

PAGE = (Path(__file__).parents[2] / "docs" / "planner" / "api.md").read_text()


def test_every_example_of_the_page_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    assert "times the tokens a second" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [Plan, Candidate])
def test_every_field_stands_on_the_page(kind):
    table = PAGE.split(f"| `{kind.__name__}` | |")[1].split("\n\n")[0]
    assert {field.name for field in dataclasses.fields(kind)} <= set(re.findall(r"`(\w+)", table))


def test_the_names_are_functions_whatever_was_imported_first():
    for first in (
        "hpcdl.planner.estimate",
        "hpcdl.planner.plan",
        "hpcdl.planner.scaling",
        "hpcdl.workflow.studies.studying",
    ):
        code = f"import {first}; from hpcdl.planner import estimate, plan; print(callable(plan), callable(estimate))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "True True\n"
    assert set(hpcdl.planner.__all__) == {"Candidate", "Plan", "estimate", "plan"}


def test_estimate_is_what_the_search_says_of_the_same(experiment_of, perlmutter):
    found = plan(experiment_of(batch=64), perlmutter, 8)
    for candidate in found.candidates[:5]:
        alone = estimate(experiment_of(batch=64), perlmutter, candidate.decomposition)
        assert alone.step_seconds == pytest.approx(candidate.step_seconds)
        assert alone.memory_gib == pytest.approx(candidate.memory_gib)
        assert alone.refusals == ()


def test_estimate_judges_what_was_asked_whatever_the_experiment_says(experiment_of, perlmutter):
    experiment = experiment_of(batch=64, parallelism={"x": 2})
    asked = Decomposition(data=8, microbatch=2)
    assert estimate(experiment, perlmutter, asked).decomposition == asked


def test_what_cannot_run_has_an_estimate_and_says_why(experiment_of, perlmutter):
    three = estimate(experiment_of(batch=64), perlmutter, Decomposition(data=3))
    assert three.step_seconds > 0
    assert "global_batch 64 is not divisible by data 3" in three.refusals[0]
    assert three.to_json()["refusals"] == list(three.refusals)


def test_engine_and_profile_are_heard(experiment_of, perlmutter):
    sharded = Decomposition(data=8, zero=3)
    experiment = experiment_of(batch=64)
    assert estimate(experiment, perlmutter, sharded).refusals
    assert not estimate(experiment, perlmutter, sharded, engine=find_engine("any")).refusals
    plain = Decomposition(data=8)
    profile = default_profile(perlmutter.nodes["gpu40"].device)
    later = profile.model_copy(update={"step_overhead_s": profile.step_overhead_s + 1})
    slower = estimate(experiment, perlmutter, plain, later).step_seconds
    assert slower == pytest.approx(estimate(experiment, perlmutter, plain).step_seconds + 1)


def test_a_site_that_cannot_place_the_ranks_is_an_error(experiment_of, perlmutter):
    experiment = experiment_of(resources={"nodes": 1, "gpus": 8})
    with pytest.raises(InfeasibleError, match="8 a node"):
        estimate(experiment, perlmutter, Decomposition(data=8))
