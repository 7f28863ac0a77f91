import time

import pytest

from hpcdl.errors import InfeasibleError, UsageError
from hpcdl.planner.plan import plan
from hpcdl.spec.decomposition import Decomposition


def refused(experiment, site, gpus):
    with pytest.raises(InfeasibleError) as caught:
        plan(experiment, site, gpus)
    counts = [int(word.strip(",;")) for word in caught.value.hint.split() if word.strip(",;").isdecimal()]
    return caught.value.message, counts


def test_a_prime_number_that_no_axis_takes_says_why_axis_by_axis(perlmutter, experiment_of):
    message, counts = refused(experiment_of(batch=8), perlmutter, 13)
    assert "no axis can take 13, a prime factor of 13: x: kv_heads 8 is not divisible by x 13; y: " in message
    for words in ("global_batch 8 is not divisible by data 13", "needs more layers than the model's 8"):
        assert words in message
    assert counts == [12, 14]


def test_a_prime_number_that_some_axis_takes_is_not_blamed(perlmutter, experiment_of):
    message, _ = refused(experiment_of(batch=7, preset="gpt3-175b", vocab=51200), perlmutter, 7)
    assert "no axis can take" not in message


def test_a_model_that_the_engine_cannot_run_on_any_number_of_devices_is_sent_to_another(
    perlmutter, experiment_of
):
    """Someone planned a mixture of experts, and was told five times that there is none and to change counts."""
    with pytest.raises(InfeasibleError) as caught:
        plan(experiment_of(batch=64, experts=8, active_experts=2), perlmutter, 16)
    assert caught.value.message.count("experts 8: the bundled engine has no mixture of experts") == 1
    assert caught.value.hint == "plan for an engine that can with --engine any"


def test_too_few_devices_are_told_how_many_would_do(perlmutter, experiment_of):
    shape = dict(layers=200, hidden=40960, heads=320, vocab=51200, sequence=2048)
    experiment = experiment_of(batch=512, **shape)
    _, counts = refused(experiment, perlmutter, 16)
    (fewest,) = counts
    assert fewest > 16 + 32
    assert plan(experiment, perlmutter, fewest).feasible
    with pytest.raises(InfeasibleError):
        plan(experiment, perlmutter, fewest * 3 // 4)


@pytest.mark.parametrize(
    ("batch", "explicit", "words"),
    [
        (32, {"data": 3, "x": 2}, "the nearest training.global_batch that would do: 30 and 33"),
        (32, {"x": 3}, "kv_heads 8 is not divisible by x 3; the nearest x that would do: 2 and 4"),
        (32, {"y": 3}, "hidden 512 is not divisible by y 3; the nearest y that would do: 2 and 4"),
        (32, {"pipeline": 9}, "the nearest pipeline that would do: 8"),
        (32, {"pipeline": 3, "interleave": 4}, "the nearest pipeline that would do: 2"),
        (32, {"interleave": 2}, "the nearest interleave that would do: 1"),
        (32, {"data": 8, "microbatch": 5}, "the nearest microbatch that would do: 4"),
    ],
)
def test_a_broken_rule_comes_with_the_nearest_values_that_keep_it(
    perlmutter, experiment_of, batch, explicit, words
):
    ranks = Decomposition(**explicit).ranks
    found = plan(experiment_of(batch=batch, parallelism=explicit), perlmutter, ranks)
    assert words in found.infeasible


def test_what_does_not_fit_hears_the_fewest_changes_that_help(site_with, experiment_of):
    shape = dict(layers=24, hidden=2048, heads=16, vocab=51200, sequence=2048)
    asked = {"pipeline": 2, "data": 4, "microbatch": 16}
    found = plan(experiment_of(batch=64, parallelism=asked, **shape), site_with("7GiB"), 8)
    (advice,) = [line for line in found.infeasible.splitlines() if line.startswith("with parallelism.")]
    changes = dict(
        part.split(": ") for part in advice.split(" it needs ")[0].removeprefix("with ").split(", ")
    )
    changed = {name.removeprefix("parallelism."): word for name, word in changes.items()}
    assert len(changed) > 1
    again = plan(experiment_of(batch=64, parallelism={**asked, **changed}, **shape), site_with("7GiB"), 8)
    assert again.infeasible is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": 8 * 10**12}, "model.hidden 8000000000000 is more than the 1048576"),
        ({"layers": 10**9}, "model.layers 1000000000 is more than the 10000"),
        ({"vocab": 10**18}, "model.vocab 1000000000000000000 is more than the 16777216"),
        ({"batch": 10**15}, "training.global_batch 1000000000000000 is more than the 2147483648"),
        (
            {"parallelism": {"data": 10**21}},
            "parallelism's product 1000000000000000000000 is more than the 1048576",
        ),
        (
            {"parallelism": {"in_flight": 10**21}},
            "parallelism.in_flight 1000000000000000000000 is more than the",
        ),
    ],
)
def test_huge_numbers_are_refused_at_once(perlmutter, experiment_of, changes, words):
    started = time.process_time()
    with pytest.raises(UsageError, match=words):
        plan(experiment_of(**changes), perlmutter, 8)
    assert time.process_time() - started < 0.5


def test_more_devices_than_any_machine_has_are_refused_at_once(perlmutter, experiment_of):
    started = time.process_time()
    with pytest.raises(UsageError, match="gpus 1000000000 is more than the 1048576"):
        plan(experiment_of(), perlmutter, 10**9)
    with pytest.raises(UsageError, match="at least one device, not 0"):
        plan(experiment_of(), perlmutter, 0)
    assert time.process_time() - started < 0.5


def test_the_largest_sizes_that_are_looked_at_overflow_nothing(perlmutter, experiment_of):
    shape = dict(layers=10_000, hidden=1 << 20, heads=1 << 10, vocab=1 << 24, sequence=1 << 24)
    asked = {"x": 1024, "y": 1024}
    found = plan(experiment_of(batch=1 << 20, parallelism=asked, **shape), perlmutter, 1 << 20)
    assert found.best.step_seconds > 1e6
    assert all(value >= 0 for value in found.best.breakdown.values())
    assert all(value >= 0 for value in found.best.memory_breakdown.values())
