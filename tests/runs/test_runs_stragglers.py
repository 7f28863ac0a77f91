"""Whatever ranks there are: those that are slow for their stage are told, and nobody else."""

import random
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs.written import signed

from hpcdl.run_folder import RunFolder
from hpcdl.runs.nodes.stragglers import FEWEST, Work, histories, slow, stragglers
from hpcdl.runs.nodes.working import works
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment, Rendezvous, ResolvedRun
from hpcdl.spec.job import Layout
from hpcdl.telemetry import Heartbeat, RunEvent, StepRecord, append

A_HOST = 4  # ranks


def fleet(stages, hosts, factors, *, steps=40, seed=0, busy=0.1):
    """Stages of so many hosts each, their ranks healthy within 4 %; now and then a step is very long."""
    noise = random.Random(seed)

    def seconds(stage, factor):
        times = noise.uniform(0.98, 1.02) * (3 if noise.random() < busy else 1)
        return (stage + 1) * factor * times  # stages differ by design

    return [
        Work(rank, f"n{rank // A_HOST}", stage, {step: seconds(stage, factors.get(rank, 1)) for step in range(steps)})
        for rank in range(stages * hosts * A_HOST)
        for stage in [rank // (hosts * A_HOST)]
    ]  # fmt: skip


@given(st.integers(1, 3), st.integers(2, 5), st.integers(0, 10**6))
def test_healthy_ranks_of_unequal_stages_are_no_stragglers(stages, hosts, seed):
    assert stragglers(fleet(stages, hosts, {}, seed=seed)) == []


@given(
    st.integers(1, 3), st.integers(2, 5), st.data(), st.floats(1.3, 5), st.integers(0, 10**6)
)  # fmt: skip
def test_a_slow_rank_is_told_with_its_factor(stages, hosts, data, factor, seed):
    rank = data.draw(st.integers(0, stages * hosts * A_HOST - 1))
    (found,) = stragglers(fleet(stages, hosts, {rank: factor}, seed=seed))
    assert (found.ranks, found.host) == ((rank,), f"n{rank // A_HOST}")
    assert found.slowness.times == pytest.approx(factor, rel=0.1)
    assert found.slowness.steps == 40


@given(st.integers(1, 3), st.integers(2, 5), st.data(), st.floats(1.3, 5), st.integers(0, 10**6))
def test_a_slow_host_is_told_once_with_all_its_ranks(stages, hosts, data, factor, seed):
    host = data.draw(st.integers(0, stages * hosts - 1))
    ranks = tuple(range(host * A_HOST, (host + 1) * A_HOST))
    (found,) = stragglers(fleet(stages, hosts, dict.fromkeys(ranks, factor), seed=seed))
    assert (found.host, found.ranks) == (f"n{host}", ranks)
    assert found.slowness.times == pytest.approx(factor, rel=0.1)


def test_who_is_slow_in_half_of_the_steps_only_is_not_told():
    healthy = {rank: dict.fromkeys(range(40), 1.0) for rank in range(3)}
    assert slow(healthy | {3: {step: 1.0 + step % 2 for step in range(40)}}) == {}
    assert slow(healthy | {3: dict.fromkeys(range(40), 1.05)}) == {}
    assert slow(healthy | {3: dict.fromkeys(range(FEWEST - 1), 2.0)}) == {}
    assert slow(healthy | {3: dict.fromkeys(range(FEWEST), 2.0)})[3].times == 2.0


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=9))
def test_what_others_take_is_their_median(values):
    """Against the plain way to say it."""
    from statistics import median  # noqa: PLC0415

    found = slow({unit: dict.fromkeys(range(FEWEST), value) for unit, value in enumerate(values)})
    for unit, value in enumerate(values):
        others = median(values[:unit] + values[unit + 1 :])
        assert (unit in found) == (value > 1.1 * others)
        if unit in found:
            assert found[unit].others == pytest.approx(others)


def test_a_rank_that_nobody_can_be_compared_with_is_not_slow():
    assert stragglers([Work(0, "n0", 0, dict.fromkeys(range(40), 9.0)), Work(1, "n0", 1, {})]) == []
    assert stragglers([]) == []


def test_hosts_that_are_slow_run_after_run_come_first():
    runs = {
        "a": fleet(1, 3, {0: 2.0}),
        "b": fleet(1, 3, dict.fromkeys(range(4), 1.5) | {5: 4.0}),
        "c": fleet(1, 3, {}),
        "d": fleet(1, 1, {1: 1.3}),
    }
    first, second = histories(runs)
    assert (first.host, first.runs, first.slow, first.worst_run) == ("n0", 4, 3, "a")
    assert [first.times, first.worst] == pytest.approx([1.5, 2.0], rel=0.1)
    assert (second.host, second.runs, second.slow) == ("n1", 3, 1)


def test_runs_in_which_nobody_could_be_compared_with_a_host_do_not_count():
    """Two of twelve runs of which ten had one rank a stage looked like a node that is slow now and then."""
    alone = [Work(rank, f"n{rank}", rank, dict.fromkeys(range(40), 1.0)) for rank in range(2)]
    (first,) = histories(
        {f"alone {number}": alone for number in range(10)}
        | {"slow": fleet(1, 2, dict.fromkeys(range(4), 2.0))}
    )
    assert (first.host, first.runs, first.slow) == ("n0", 1, 1)


# --- from the files of a run -------------------------------------------------------------------------------------


def written(path, attempts, steps=100):
    """A run of two stages of two ranks; each attempt's hosts begin with its letter, and rank 3 is slow."""
    folder = RunFolder(path)
    path.mkdir()
    model = {"family": "gpt", "layers": 4, "hidden": 32, "heads": 4, "vocab": 256, "sequence": 32}
    told = {"model": model, "data": {"path": "c"}, "training": {"global_batch": 8, "steps": steps}}
    run = ResolvedRun(
        run="r",
        experiment=Experiment.model_validate(told),
        decomposition=Decomposition(data=2, pipeline=2),
        layout=Layout(nodes=1, ranks_per_node=4, cores_per_rank=1),
        device="cpu",
        device_per_rank=False,
        rendezvous=Rendezvous(address="loopback"),
        site="test",
        versions={},
    )
    folder.resolved.write_text(run.model_dump_json())
    folder.metrics.mkdir()
    for attempt, letter in enumerate(attempts, start=1):
        append(folder.launcher_events, RunEvent("submitted", 1.0, attempt, {"job_id": "7"}))
        for rank in range(4):
            sign = Heartbeat(
                rank, f"{letter}{rank}", 9, 9, "", "", waiting=False, moves=9, still=0.0, patience=None
            )
            signed(folder, attempt, sign)
            for step in range(steps * (attempt - 1), steps * attempt):
                own = (1 + rank // 2) * (2.0 if rank == 3 else 1.0)
                seconds = {"compute": own - 0.25, "optimizer": 0.25, "idle": 5.0 - own, "all_reduce": 1.0}
                append(
                    folder.rank_metrics(rank),
                    StepRecord(step + 1, 1.0, 9, 6.0, 1.5, seconds=seconds, attempt=attempt),
                )
    return folder


def test_of_a_run_the_last_steps_of_its_newest_attempt_are_compared(tmp_path):
    folder = written(tmp_path / "run", "ab")
    found = works(folder)
    assert [(work.rank, work.host, work.stage) for work in found] == [
        (0, "b0", 0), (1, "b1", 0), (2, "b2", 1), (3, "b3", 1),
    ]  # fmt: skip
    assert all(max(work.seconds) == 200 and min(work.seconds) > 100 for work in found)
    (slow_one,) = stragglers(found)
    assert (slow_one.host, slow_one.ranks) == ("b3", (3,))
    assert asdict(slow_one.slowness) | {"steps": 0} == {
        "times": 2.0,
        "seconds": 4.0,
        "others": 2.0,
        "steps": 0,
    }


def test_an_attempt_that_has_not_trained_yet_leaves_the_word_to_the_one_before(tmp_path):
    folder = written(tmp_path / "run", "a")
    append(folder.launcher_events, RunEvent("submitted", 1.0, 2, {"job_id": "8"}))
    assert {work.host for work in works(folder)} == {"a0", "a1", "a2", "a3"}


def test_a_file_is_not_read_whole(tmp_path):
    """Nor is a line that the tail begins in the middle of."""
    folder = written(tmp_path / "run", "a", steps=1000)
    for work in works(folder):
        assert 30 < len(work.seconds) < 200
        assert sorted(work.seconds) == list(range(1001 - len(work.seconds), 1001))
