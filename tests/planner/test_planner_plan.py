import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdl.errors import InfeasibleError, UsageError
from hpcdl.planner.choices import Space
from hpcdl.planner.estimate import step_tree
from hpcdl.planner.explain import explain
from hpcdl.planner.plan import TOP, build_case, plan
from hpcdl.planner.rank import order
from hpcdl.sites.detect import describe
from hpcdl.sites.load import load_site
from hpcdl.sites.profile import default_profile
from hpcdl.spec.decomposition import violations
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.job import Layout

KEYS = [
    "experiment", "site", "gpus", "evaluated", "feasible", "slower", "refused", "search_seconds", "interrupted",
    "engine", "candidates", "without", "warnings",
]  # fmt: skip
CANDIDATE_KEYS = [
    "rank", "decomposition", "step_seconds", "tokens_per_second", "tflops_per_gpu", "mfu", "memory_gib",
    "host_memory_gib", "breakdown", "memory_breakdown", "notes", "refusals",
]  # fmt: skip
POLARIS = load_site("polaris")


def quickstart(**shape):
    model = {"layers": 4, "hidden": 128, "heads": 4, "vocab": 256, "sequence": 128, **shape}
    training = {"global_batch": 18, "precision": "fp32"}
    return Experiment.model_validate(
        {"name": "quickstart", "model": model, "data": {"source": "stdlib"}, "training": training}
    )


@settings(max_examples=25)
@given(st.integers(1, 40), st.sampled_from([12, 32, 36, 60]), st.sampled_from([6, 8, 12]), st.integers(1, 9))
def test_every_proposal_keeps_the_rules_makes_the_gpus_and_adds_up(gpus, batch, heads, layers):
    experiment = Experiment.model_validate(
        {
            "model": {"layers": layers, "hidden": heads * 32, "heads": heads, "vocab": 768, "sequence": 64},
            "data": {"source": "stdlib"},
            "training": {"global_batch": batch},
        }
    )
    try:
        found = plan(experiment, POLARIS, gpus)
    except InfeasibleError:
        assert len(Space(gpus, experiment.model, batch).nodes) == 0
        return
    assert found.evaluated == found.feasible + found.slower + sum(found.refused.values())
    steps = [candidate.step_seconds for candidate in found.candidates]
    assert steps == pytest.approx(sorted(steps), rel=1e-8)
    for candidate in found.candidates:
        assert candidate.decomposition.ranks == gpus
        assert violations(candidate.decomposition, experiment.model, batch) == {}
        assert math.fsum(candidate.breakdown.values()) == pytest.approx(candidate.step_seconds)
        assert math.fsum(candidate.memory_breakdown.values()) == pytest.approx(candidate.memory_gib)
        assert candidate.memory_gib <= found.budget_gib


def test_the_json_has_the_documented_keys(perlmutter, experiment_of):
    document = json.loads(json.dumps(plan(experiment_of(), perlmutter, 8).to_json()))
    assert list(document) == KEYS
    assert [candidate["rank"] for candidate in document["candidates"]] == list(range(1, TOP + 1))
    for candidate in document["candidates"]:
        assert list(candidate) == CANDIDATE_KEYS
        assert set(candidate["decomposition"]) == {
            "data",
            "pipeline",
            "x",
            "y",
            "z",
            "context",
            "expert",
            "order",
            "sequence_parallel",
            "microbatch",
            "interleave",
            "in_flight",
            "defer_weights",
            "recompute",
            "recompute_every",
            "zero",
            "offload",
            "offload_activations",
        }


def test_fewer_candidates_can_be_asked_for(perlmutter, experiment_of):
    assert len(plan(experiment_of(), perlmutter, 8).to_json(top=3)["candidates"]) == 3


def test_the_same_question_gets_the_same_answer(perlmutter, experiment_of):
    first, second = (plan(experiment_of(), perlmutter, 8) for _ in range(2))
    assert first.candidates == second.candidates


def test_rates_follow_from_the_step(perlmutter, experiment_of):
    experiment = experiment_of(batch=64)
    best = plan(experiment, perlmutter, 8).best
    assert best.tokens_per_second == pytest.approx(64 * 256 / best.step_seconds)
    assert best.tflops_per_gpu == pytest.approx(
        experiment.model.train_flops * 64 / 8 / best.step_seconds / 1e12
    )
    assert best.mfu == pytest.approx(best.tflops_per_gpu / 312)


@pytest.mark.parametrize(("preset", "gpus", "batch"), [("gpt3-6.7b", 64, 4096), ("llama3-70b", 512, 4096)])
def test_many_tokens_a_gpu_want_data_and_z_or_stages_but_no_wide_tensor_axes(
    perlmutter, experiment_of, preset, gpus, batch
):
    """AxoNN's finding: what counts is tokens per GPU and step; with many, moving weights beats moving activations."""
    best = best_without_offload(plan(experiment_of(batch=batch, preset=preset), perlmutter, gpus))
    assert best.x * best.y == 1
    assert best.data * best.z > 1


def best_without_offload(found):
    best = found.without["offload"].fastest if "offload" in found.without else found.best
    return best.decomposition


def test_few_sequences_bring_tensor_axes_in(perlmutter, experiment_of):
    best = plan(experiment_of(batch=4, preset="llama2-7b"), perlmutter, 64).best.decomposition
    assert best.x * best.y > 1


def test_a_prime_number_of_gpus_is_planned(perlmutter, experiment_of):
    best = plan(experiment_of(batch=28), perlmutter, 7).best
    assert 7 in (best.decomposition.data, best.decomposition.pipeline)
    assert any("1 of 4 devices of each node" in note for note in best.notes)


def test_a_faster_network_slows_no_candidate(perlmutter, experiment_of):
    experiment = experiment_of(batch=96, layers=6, hidden=768, heads=12)
    layout = Layout(nodes=6, ranks_per_node=4, cores_per_rank=16)
    node = perlmutter.nodes["gpu40"]
    quicker = node.model_copy(update={"links": node.links.model_copy(update={"nic_bandwidth": 50})})
    fast = perlmutter.model_copy(update={"nodes": {"gpu40": quicker}})
    candidates = Space(24, experiment.model, 96).nodes
    slow_s, fast_s = (
        step_tree(build_case(experiment, site, layout), candidates, drive=False).value
        for site in (perlmutter, fast)
    )
    assert (fast_s <= slow_s * (1 + 1e-12)).all()
    assert (fast_s < slow_s).any()


@pytest.mark.parametrize(("cores", "layers", "hidden"), [(2, 4, 128), (2, 6, 192), (8, 4, 192), (64, 6, 128)])
def test_the_quickstart_uses_two_axes(cores, layers, hidden):
    """18 sequences do not divide by four replicas; two of them, each a pipeline of two, lose least."""
    site = describe(cores, 16 * 2**30, [])
    best = plan(quickstart(layers=layers, hidden=hidden), site, 4).best
    assert (best.decomposition.data, best.decomposition.pipeline) == (2, 2)


def test_an_explicit_decomposition_is_the_whole_plan(perlmutter, experiment_of):
    explicit = {"data": 2, "pipeline": 2, "x": 2, "microbatch": 4}
    found = plan(experiment_of(parallelism=explicit), perlmutter, 8)
    assert (found.infeasible, found.evaluated, found.feasible, len(found.candidates)) == (None, 1, 1, 1)
    assert found.best.decomposition.model_dump().items() >= explicit.items()


def test_an_explicit_decomposition_costs_what_the_search_says(perlmutter, experiment_of):
    best = plan(experiment_of(), perlmutter, 8).best
    again = plan(experiment_of(parallelism=best.decomposition.model_dump()), perlmutter, 8).best
    assert again == best


@pytest.mark.parametrize(
    ("explicit", "reason", "words"),
    [
        (
            {"data": 2, "pipeline": 3},
            "ranks",
            "data 2 × pipeline 3 × x 1 × y 1 × z 1 = 6 ranks, but the job has 8 devices",
        ),
        (
            {"data": 8, "microbatch": 64},
            "microbatch",
            "microbatch 64 is more than a rank's share of global_batch 32",
        ),
    ],
)
def test_an_explicit_decomposition_that_cannot_run_says_why(
    perlmutter, experiment_of, explicit, reason, words
):
    found = plan(experiment_of(parallelism=explicit), perlmutter, 8)
    assert words in found.infeasible
    assert (found.feasible, found.refused) == (0, {reason: 1})
    assert words in " ".join(found.best.notes)
    assert found.best.decomposition.model_dump().items() >= explicit.items()


def test_an_explicit_decomposition_that_does_not_fit_names_the_largest_term(perlmutter, experiment_of):
    found = plan(experiment_of(preset="gpt3-13b", parallelism={"data": 8}), perlmutter, 8)
    assert found.refused == {"memory": 1}
    assert "most of it optimizer state" in found.infeasible
    assert "38.00 GiB are there after a margin of 5%" in found.infeasible
    assert len(found.candidates) == 1


def test_nothing_that_fits_is_an_error_with_counts_and_a_way_out(perlmutter, experiment_of):
    with pytest.raises(InfeasibleError) as caught:
        plan(experiment_of(batch=512, preset="gpt3-175b", vocab=51200), perlmutter, 8)
    assert "most are refused by memory" in caught.value.message
    assert "optimizer state" in caught.value.message
    assert caught.value.hint.startswith("the nearest device counts that work: ")
    assert caught.value.exit_code == 3


def test_the_advised_device_counts_do_work(perlmutter, experiment_of):
    experiment = experiment_of(batch=8)
    with pytest.raises(InfeasibleError, match="refused by") as caught:
        plan(experiment, perlmutter, 13)
    counts = [int(word.strip(",;")) for word in caught.value.hint.split() if word.strip(",;").isdecimal()]
    assert counts == [12, 14]
    for count in counts:
        assert plan(experiment, perlmutter, count).feasible


def test_a_precision_the_device_lacks_is_refused(experiment_of):
    site = describe(4, 2**34, [])
    node = site.nodes["cpu"]
    only_fp32 = node.device.model_copy(update={"peak_tflops": {"fp32": 1.0}})
    plain = site.model_copy(update={"nodes": {"cpu": node.model_copy(update={"device": only_fp32})}})
    with pytest.raises(UsageError, match="bf16 is not supported"):
        plan(experiment_of(), plain, 4)


def test_another_profile_changes_the_estimate(perlmutter, experiment_of):
    profile = default_profile(perlmutter.nodes["gpu40"].device)
    slower = profile.model_copy(update={"gemm_efficiency": 0.4})
    experiment = experiment_of(preset="gpt3-1.3b", vocab=51200, batch=64)
    quick, slow = (plan(experiment, perlmutter, 8, profile=one).best for one in (profile, slower))
    assert slow.step_seconds > 1.5 * quick.step_seconds


def test_ties_go_to_the_simpler_candidate():
    candidates = Space(4, quickstart().model, 16).nodes
    first = candidates.decomposition(int(order(candidates, np.ones(len(candidates)))[0]))
    assert (str(first), first.recompute, first.microbatch) == ("data 4", "none", 4)


def test_rivals_differ_in_their_choice_and_keep_their_true_rank(perlmutter, experiment_of):
    found = plan(experiment_of(), perlmutter, 8)
    for choice, rival in found.rivals.items():
        assert getattr(rival.decomposition, choice) != getattr(found.best.decomposition, choice)
        assert rival.rank > 1
        if rival.rank <= TOP:
            assert found.candidates[rival.rank - 1] == rival


def test_the_explanation_names_terms_rivals_and_refusals(perlmutter, experiment_of):
    found = plan(experiment_of(batch=1024, preset="llama3-70b"), perlmutter, 512)
    lines = explain(found)
    text = "\n".join(lines)
    best = found.best.decomposition
    assert lines[0].startswith(f"rank 1: {best}, microbatch {best.microbatch}, recompute {best.recompute}")
    for words in ("backward: products for gradients", "% slower: ", "kv_heads: kv_heads is not divisible by x",
                  "memory: the leanest, ", f"of {found.evaluated} can run; {found.slower} more are slower",
                  "efficiencies: "):  # fmt: skip
        assert words in text
    assert all(
        f"  {axis}: " in text
        for axis in ("x", "y", "z", "data", "pipeline", "microbatch", "recompute", "offload")
    )


def test_any_kept_rank_can_be_explained_and_no_other(perlmutter, experiment_of):
    found = plan(experiment_of(), perlmutter, 8)
    assert explain(found, TOP)[0].startswith(f"rank {TOP}: ")
    with pytest.raises(UsageError, match="rank 21 is not in this plan, which holds 1 to 20"):
        explain(found, 21)


def test_a_trillion_parameters_on_16384_gpus_are_planned_in_seconds(tmp_path):
    """From a cold start: some two seconds of a processor's time.

    The bound once was the search's alone, in this process: now a hundred times as much is searched, and what
    counts the lines that tests reach takes three times as long, so the command runs without that.
    """
    (tmp_path / "large.yaml").write_text(
        "model: {layers: 128, hidden: 25600, heads: 160, vocab: 51200, sequence: 2048}\n"
        "data: {source: stdlib}\n"
        "training: {global_batch: 4096}\n"
    )
    command = [sys.executable, "-m", "hpcdl", "plan", "large.yaml", "--site", "perlmutter", "--json"]
    uncounted = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    with (tmp_path / "answer.json").open("w") as answer:
        planner = subprocess.Popen([*command, "--gpus", "16384"], cwd=tmp_path, env=uncounted, stdout=answer)
        _, planner.returncode, used = os.wait4(planner.pid, 0)
    assert planner.returncode == 0
    assert used.ru_utime + used.ru_stime < 5
    assert json.loads((tmp_path / "answer.json").read_text())["evaluated"] > 30_000


def test_the_nodes_that_the_experiment_asks_for_are_used(perlmutter, experiment_of):
    spread_out = plan(experiment_of(resources={"gpus": 8, "nodes": 4}), perlmutter, 8)
    assert (spread_out.layout.nodes, spread_out.layout.ranks_per_node) == (4, 2)
    assert plan(experiment_of(resources={"gpus": 8, "nodes": 4}), perlmutter, 16).layout.nodes == 4


def test_counts_that_the_machine_cannot_place_are_not_advised(experiment_of):
    """Eight slots and no network: more devices are no way out."""
    with pytest.raises(InfeasibleError) as caught:
        plan(experiment_of(batch=5, precision="fp32", layers=4), describe(2, 2**34, []), 7)
    assert caught.value.hint.startswith("the nearest device counts that work: 6, 8;")
