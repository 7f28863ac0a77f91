"""What a plan says of offload and pruning: what they made possible, what would help, what saves nothing."""

import json
import math

import pytest

from hpcdl.errors import InfeasibleError
from hpcdl.planner.explain import explain
from hpcdl.planner.plan import plan
from hpcdl.sites.detect import describe
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.training import Pruning


def test_nothing_is_offloaded_where_it_does_not_pay(perlmutter, experiment_of):
    found = plan(experiment_of(batch=64), perlmutter, 8)
    assert {one.decomposition.offload for one in found.candidates} == {"none"}
    assert found.without == {}


def test_nothing_is_offloaded_where_device_and_host_are_one_memory(experiment_of):
    found = plan(experiment_of(precision="fp32", layers=4), describe(4, 2**34, []), 4)
    assert {one.decomposition.offload for one in found.candidates} == {"none"}
    forced = plan(
        experiment_of(parallelism={"offload": "optimizer"}, precision="fp32"), describe(4, 2**34, []), 1
    )
    assert "device and host are one memory here: offload saves nothing" in forced.best.notes


def test_a_plan_says_what_offload_made_possible(site_with, experiment_of):
    shape = dict(layers=24, hidden=2048, heads=16, vocab=51200, sequence=1024)
    found = plan(experiment_of(batch=64, **shape), site_with("6GiB"), 16)
    d = found.best.decomposition
    left = found.without["offload"]
    assert d.offload != "none"
    assert left.fastest.decomposition.offload == "none"
    assert left.fastest.step_seconds > found.best.step_seconds
    assert found.rivals["offload"].decomposition.offload != d.offload
    text = "\n".join(explain(found))
    assert f", offload {d.offload}: " in text
    assert "without offload the best would" in text
    assert f"the fastest that fits: {left.fastest.decomposition}, " in text
    assert "% slower" in text
    assert "besides  host memory: " in text
    document = json.loads(json.dumps(found.to_json()))
    assert set(document["without"]) == {"offload"}
    assert set(document["without"]["offload"]) == {"needs_gib", "fits", "shallowest", "fastest"}
    assert document["candidates"][0]["host_memory_gib"] > 0
    for candidate in found.candidates:
        assert math.fsum(candidate.memory_breakdown.values()) == pytest.approx(candidate.memory_gib)
        assert math.fsum(candidate.breakdown.values()) == pytest.approx(candidate.step_seconds)


def test_an_explicit_pipeline_says_how_deep_it_would_be_without(site_with, experiment_of):
    """As in AxoNN's paper: the scratch pad makes a shorter pipeline possible."""
    shape = dict(layers=24, hidden=2048, heads=16, vocab=51200, sequence=1024)
    asked = {"pipeline": 2, "data": 4, "offload": "optimizer", "recompute": "full", "in_flight": 2, "zero": 1}
    found = plan(experiment_of(batch=64, parallelism=asked, **shape), site_with("12GiB"), 8)
    assert found.infeasible is None
    left = found.without["offload"]
    assert not left.fits
    assert left.shallowest.decomposition.pipeline > 2
    assert (left.shallowest.decomposition.in_flight, left.shallowest.decomposition.zero) == (None, 1)
    text = "\n".join(explain(found))
    assert "without offload the best would not fit: " in text
    assert f"the shortest pipeline that fits otherwise alike: {left.shallowest.decomposition}" in text


def test_an_explicit_pipeline_says_how_deep_it_would_be_unpruned(site_with, experiment_of):
    shape = dict(layers=24, hidden=2048, heads=16, vocab=51200, sequence=1024)
    experiment = experiment_of(batch=64, parallelism={"pipeline": 2, "data": 4, "recompute": "full"}, **shape)
    training = experiment.training.model_copy(update={"pruning": Pruning(sparsity=0.9)})
    found = plan(experiment.model_copy(update={"training": training}), site_with("12GiB"), 8)
    assert found.infeasible is None
    left = found.without["pruning"]
    assert not left.fits
    assert left.shallowest.decomposition.pipeline > 2
    assert left.same.memory_gib > found.best.memory_gib
    assert "without pruning the best would not fit: " in "\n".join(explain(found))


def test_a_shorter_pipeline_keeps_the_rules_too(site_with, experiment_of):
    """Two chunks a rank need more than one rank, so there is no pipeline of one to compare with."""
    asked = {"pipeline": 2, "interleave": 2, "offload": "optimizer"}
    found = plan(experiment_of(batch=64, parallelism=asked), site_with("40GiB"), 2)
    assert found.without["offload"].shallowest.decomposition.pipeline == 2


def test_what_does_not_fit_hears_which_offload_would_help(site_with, experiment_of):
    shape = dict(layers=24, hidden=2048, heads=16, vocab=51200, sequence=1024)
    asked = {"pipeline": 2, "data": 4, "recompute": "full"}
    found = plan(experiment_of(batch=64, parallelism=asked, **shape), site_with("12GiB"), 8)
    assert "with parallelism.offload: optimizer it needs " in found.infeasible
    assert "GiB of host memory, and fits" in found.infeasible


def test_what_nothing_fits_hears_how_far_offload_went(site_with, experiment_of):
    with pytest.raises(InfeasibleError) as caught:
        plan(experiment_of(batch=64, preset="gpt3-175b", vocab=51200), site_with("40GiB"), 4)
    assert "\nthe leanest with offload optimizer, " in caught.value.message
    assert caught.value.message.count("GiB are there after a margin of 5%") == 2


def test_host_memory_that_does_not_suffice_is_named(site_with, experiment_of):
    asked = {"data": 4, "offload": "optimizer"}
    site = site_with("40GiB", host_memory="8GiB")
    found = plan(experiment_of(parallelism=asked, layers=24, hidden=2048, heads=16, vocab=51200), site, 4)
    assert "in host memory, but 1.90 GiB of it are there after a margin of 5%" in found.infeasible
    assert found.refused == {"memory": 1}


def test_activations_are_offloaded_when_nothing_else_fits(site_with, experiment_of):
    shape = dict(layers=64, hidden=512, heads=8, vocab=1024, sequence=65536)
    found = plan(experiment_of(batch=1, **shape), site_with("6GiB"), 1)
    assert found.best.decomposition.offload_activations
    assert found.best.decomposition.recompute == "full"
    assert ", offload optimizer + activations: " in explain(found)[0]


@pytest.mark.parametrize(("sparsity", "warned"), [(0.1, True), (0.24, True), (0.25, False), (0.9, False)])
def test_a_sparsity_below_the_break_even_is_warned_of_with_both_counts(
    perlmutter, experiment_of, sparsity, warned
):
    experiment = experiment_of()
    training = experiment.training.model_copy(update={"pruning": Pruning(sparsity=sparsity)})
    found = plan(experiment.model_copy(update={"training": training}), perlmutter, 4)
    assert bool(found.warnings) == warned
    assert found.to_json()["warnings"] == list(found.warnings)
    for words in found.warnings:
        assert f"training.pruning.sparsity {sparsity:g} saves little or no memory" in words
        assert "MiB a rank pruned and " in words
        assert " MiB dense" in words


def test_a_bucket_larger_than_the_parameters_is_warned_of(perlmutter, experiment_of):
    asked = {"data": 4, "offload": "optimizer"}
    experiment = experiment_of(parallelism=asked)
    assert plan(experiment, perlmutter, 4).warnings == ()
    training = experiment.training.model_copy(update={"bucket_mib": 1000.0})
    (words,) = plan(experiment.model_copy(update={"training": training}), perlmutter, 4).warnings
    assert words.startswith("training.bucket_mib 1000 is a bucket of 262144000 elements, more than the 25")
    plain = experiment.model_copy(update={"training": training, "parallelism": Decomposition(data=4)})
    assert plan(plain, perlmutter, 4).warnings == ()


def test_what_was_assumed_is_noted(case_on, perlmutter, experiment_of):
    asked = {"data": 4, "offload": "optimizer"}
    notes = plan(experiment_of(parallelism=asked), perlmutter, 4).best.notes
    assert "gradients are kept and summed in bf16, not fp32" in notes
    experiment = experiment_of(parallelism={"data": 4})
    training = experiment.training.model_copy(update={"pruning": Pruning(sparsity=0.5, begin=10)})
    notes = plan(experiment.model_copy(update={"training": training}), perlmutter, 4).best.notes
    assert any("memory must be enough for the dense steps before it" in note for note in notes)


def test_a_search_that_was_stopped_is_not_followed_by_another(perlmutter, experiment_of, monkeypatch):
    """After Ctrl-C someone waited five seconds more, for what the best would be without offload."""
    monkeypatch.setattr("hpcdl.planner.choices._BLOCK", 64)
    experiment = experiment_of(batch=16, preset="gpt3-13b")

    def impatient(done, _total):
        if done == 4:
            raise KeyboardInterrupt

    stopped = plan(experiment, perlmutter, 4, watch=impatient)
    assert stopped.interrupted
    assert stopped.best.decomposition.offload != "none"
    assert stopped.without == {}
    assert "offload" in plan(experiment, perlmutter, 4).without
