"""What would make something fit stands in its explanation, and is true."""

import json

import pytest

from hpcdl.planner import estimate, plan
from hpcdl.planner.explain import described, explain, explanation
from hpcdl.planner.remedies import remedies
from hpcdl.spec.decomposition import Decomposition

SHAPE = dict(layers=16, hidden=2048, heads=16, vocab=32000, sequence=2048)


@pytest.mark.parametrize(
    ("d", "words"),
    [
        (Decomposition(data=4), "data 4, microbatch 1, recompute none"),
        (
            Decomposition(pipeline=4, interleave=2, defer_weights=True, recompute="full", recompute_every=3),
            "pipeline 4, microbatch 1, recompute full every 3, 2 chunks a rank, weight gradients deferred",
        ),
        (
            Decomposition(data=2, x=2, sequence_parallel=True, zero=1, offload="optimizer", in_flight=3),
            "data 2 × x 2, microbatch 1, recompute none, ZeRO-1, sequence parallel, 3 in flight, offload optimizer",
        ),
    ],
)
def test_a_decomposition_in_words_leaves_nothing_out(d, words):
    assert described(d) == words


@pytest.fixture
def tight(experiment_of, site_with):
    """A plan for eight devices with so much memory."""

    def make(size, parallelism="auto"):
        return plan(experiment_of(batch=64, parallelism=parallelism, **SHAPE), site_with(size), 8)

    return make


def test_the_leanest_misfit_is_told_with_the_smallest_change_that_helps(tight, experiment_of, site_with):
    found = tight("12GiB")
    misfit = found.nearest_misfit
    smallest = next(remedy for remedy in remedies(found.case, misfit.decomposition) if remedy.suffices)
    assert f"it would fit with {smallest}" in "\n".join(explain(found))
    changed = misfit.decomposition.model_copy(update=smallest.change)
    assert not estimate(experiment_of(batch=64, **SHAPE), site_with("12GiB"), changed).refusals


def test_an_explicit_one_that_does_not_fit_lists_every_change_that_would_do(tight, experiment_of, site_with):
    found = tight("16GiB", {"data": 8, "microbatch": 4})
    lines = explain(found)
    at = lines.index("it would fit with one of")
    listed = lines[at + 1 : lines.index("", at + 1)]
    fitting = [remedy for remedy in remedies(found.case, found.best.decomposition) if remedy.suffices]
    assert [line.split(": ", 1)[1] for line in listed] == [str(remedy) for remedy in fitting]
    for remedy in fitting:
        changed = Decomposition.model_validate({**found.best.decomposition.model_dump(), **remedy.change})
        assert not estimate(experiment_of(batch=64, **SHAPE), site_with("16GiB"), changed).refusals


def test_what_nothing_can_make_fit_is_said_to_be_so(tight):
    found = tight("1500MiB", {"data": 8})
    assert "no single change would make it fit" in explain(found)


def test_the_fullest_moment_of_each_stage_is_told(tight):
    lines = "\n".join(explain(tight("80GiB", {"pipeline": 4, "data": 2, "microbatch": 4})))
    assert "  fullest moment by stage: first " in lines
    assert ", last " in lines
    assert "  its fullest moment: " in "\n".join(explain(tight("80GiB", {"data": 8})))


def test_the_explanation_as_values(tight):
    found = tight("12GiB")
    document = json.loads(json.dumps(explanation(found)))
    keys = ["rank", "stages", "rivals", "overlap_off", "refused", "nearest_misfit", "remedies"]
    assert list(document) == keys
    assert max(stage["gib"] for stage in document["stages"]) == pytest.approx(found.best.memory_gib)
    assert set(document["rivals"]) == set(found.rivals)
    for name, rival in document["rivals"].items():
        gained = sum(rival["differences"].values())
        assert gained == pytest.approx(found.rivals[name].step_seconds - found.best.step_seconds, abs=1e-12)
        assert rival["slower"] == pytest.approx(gained / found.best.step_seconds, abs=1e-12)
    assert {reason: row["count"] for reason, row in document["refused"].items()} == found.refused
    assert all(row["why"] for row in document["refused"].values())
    assert [row["fits"] for row in document["remedies"]] == [row["need"] <= 1 for row in document["remedies"]]
    assert any(row["fits"] for row in document["remedies"])


def test_what_overlap_is_worth_is_told_where_there_is_something_to_hide(tight):
    sharded, alone = (tight("80GiB", degrees) for degrees in ({"z": 8}, {"pipeline": 8}))
    document = explanation(sharded)["overlap_off"]
    assert document["slower"] > 0
    assert document["differences"]["weights z"] > 0
    words = "with communication.overlap switched off it is"
    assert any(words in line and "weights z +" in line for line in explain(sharded))
    assert not any(words in line for line in explain(alone))
