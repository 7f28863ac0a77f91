"""What scontrol says, read; recorded from a real slurmctld."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from survey.recorded import MIXED, PLAIN, slurm_answers

from hpcdl.errors import SchedulerError
from hpcdl.survey import slurm
from hpcdl.units import MIB


def shape(name):
    return next(host.shape for host in MIXED.hosts if host.name == name)


def test_a_plain_cluster_is_read():
    assert (PLAIN.kind, PLAIN.version, PLAIN.max_array, PLAIN.accounting) == ("slurm", "22.05.8", 1001, False)
    assert [host.name for host in PLAIN.hosts] == ["n1", "n2", "n3"]
    assert (PLAIN.hosts[0].shape.cores, PLAIN.hosts[0].shape.gpus) == (8, 4)
    batch = PLAIN.queue("batch")
    assert (batch.default, batch.max_seconds, batch.max_nodes) == (True, 3600, None)
    assert PLAIN.hosts_of(batch) == list(PLAIN.hosts)


def test_cores_are_counted_apart_from_threads_and_reserved_cores():
    gpu = shape("g01")
    assert (gpu.cores, gpu.cpus, gpu.reserved, gpu.memory) == (64, 128, 2, 257000 * MIB)
    assert gpu.features == {"gpu", "hbm40g"}
    assert shape("c001").reserved == 0


def test_a_reason_that_looks_like_keys_changes_nothing():
    """g04 was drained with the reason ``Gres=gpu:0 broken CPUTot=1``."""
    assert "Reason=Gres=gpu:0 broken CPUTot=1" in slurm_answers("slurm-mixed")[2]
    assert shape("g04") == shape("g03")


def test_partitions_have_their_limits_and_their_nodes():
    limits = {queue.name: (queue.max_seconds, queue.min_nodes, queue.max_nodes) for queue in MIXED.queues}
    assert limits["gpu"] == (2 * 86400, 1, None)
    assert limits["debug"] == (1800, 1, 2)
    assert limits["big"] == (None, 2, None)
    assert [host.name for host in MIXED.hosts_of(MIXED.queue("debug"))] == ["g01", "g02", "m1"]
    assert {queue.name: queue.open for queue in MIXED.queues}["closed"] is False
    assert {queue.name for queue in MIXED.queues if queue.shared} == {"debug", "big", "cpu", "closed"}


def test_only_what_a_higher_tier_shares_nodes_with_can_lose_its_jobs():
    """debug has the higher tier; gpu shares nodes with it, cpu does not, big is not to be preempted."""
    assert {queue.name for queue in MIXED.queues if queue.preemptible} == {"gpu"}
    assert {queue.name for queue in PLAIN.queues if queue.preemptible} == {"batch"}


def test_memory_counts_where_jobs_are_held_to_it():
    assert (PLAIN.counts_memory, MIXED.counts_memory) == (False, True)


@pytest.mark.parametrize(
    ("gres", "counted"),
    [
        ("(null)", (0, None)),
        ("", (0, None)),
        ("gpu:4", (4, None)),
        ("gpu", (1, None)),
        ("gpu:a100:4(S:0-1)", (4, "a100")),
        ("craynetwork:4,gpu:a100:4(S:0,2)", (4, "a100")),
        ("gpu:a100:2,gpu:1g.5gb:7", (9, None)),
        ("gpu:v100:4(IDX:0-3),lustre:1", (4, "v100")),
    ],
)
def test_gpus_are_counted_in_every_form_of_gres(gres, counted):
    assert slurm.gpus(gres) == counted


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(
    "answer", ["", "\0\0\0", "<html>504 Gateway Time-out</html>\n", "PartitionName\n", "{}"]
)
def test_garbage_is_told_with_the_question(number, answer):
    answers = slurm_answers()
    answers[number] = answer
    with pytest.raises(SchedulerError, match=r"scontrol show (config|partition|node)"):
        slurm.machine(*answers)


@pytest.mark.parametrize(
    "damage", [("CPUTot=8", "CPUTot=many"), ("MaxTime=01:00:00", "MaxTime=soon"), ("CPUTot=8", "")]
)
def test_a_value_that_is_none_is_named(damage):
    answers = [answer.replace(*damage) for answer in slurm_answers()]
    with pytest.raises(SchedulerError, match=damage[0].split("=")[0]):
        slurm.machine(*answers)


@given(st.lists(st.text(max_size=200), min_size=3, max_size=3))
def test_nothing_but_a_scheduler_error_comes_of_any_answer(answers):
    with pytest.raises(SchedulerError):
        slurm.machine(*answers)


@given(st.integers(0, 2), st.integers(0, 3000), st.text(max_size=5))
def test_a_damaged_answer_is_read_or_refused(number, place, junk):
    answers = slurm_answers("slurm-mixed")
    answers[number] = answers[number][:place] + junk + answers[number][place + len(junk) :]
    with contextlib.suppress(SchedulerError):
        slurm.machine(*answers)
