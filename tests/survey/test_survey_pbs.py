"""What pbsnodes and qstat say, read; recorded from a real OpenPBS."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from survey.recorded import PBS, pbs_answers

from hpcdl.errors import SchedulerError
from hpcdl.survey import pbs
from hpcdl.survey.draft import Wish, draft
from hpcdl.units import GIB


def test_the_server_its_hosts_and_its_queues_are_read():
    assert (PBS.name, PBS.version, PBS.max_array) == ("pbshead", "23.06.06", 10000)
    assert [host.name for host in PBS.hosts] == ["cn01", "cn02", "cn03"]
    shape = PBS.hosts[0].shape
    assert (shape.cpus, shape.cores, shape.gpus, shape.memory) == (8, None, 4, 8 * GIB)
    assert [queue.name for queue in PBS.queues if queue.default] == ["workq"]
    assert {queue.name for queue in PBS.queues if queue.routing} == {"routeq"}
    assert {queue.name for queue in PBS.queues if not queue.open} == {"stopq", "closedq"}
    assert (PBS.queue("debug").max_seconds, PBS.queue("workq").max_seconds) == (300, None)


def test_a_busy_machine_is_the_same_machine():
    assert pbs.machine(*pbs_answers("pbsnodes-a-json-busy.out")).hosts == PBS.hosts


def test_vnodes_of_one_host_are_one_node():
    server, queues, nodes = pbs_answers()
    content = json.loads(nodes)
    content["nodes"]["cn01[1]"] = {
        "Mom": "cn01",
        "resources_available": {"host": "cn01", "ncpus": 8, "ngpus": 4, "mem": "8gb"},
    }
    hosts = {host.name: host.shape for host in pbs.machine(server, queues, json.dumps(content)).hosts}
    assert len(hosts) == 3
    assert (hosts["cn01"].cpus, hosts["cn01"].gpus, hosts["cn01"].memory) == (16, 8, 16 * GIB)


def test_finished_jobs_are_asked_for_whether_or_not_pbs_keeps_them():
    """Once ``scheduler.accounting: false`` was drafted where it does not, which no question of PBS heeds."""
    server, queues, nodes = pbs_answers()
    forgets = server.replace('"job_history_enable":\t"True"', '"job_history_enable":\t"False"')
    assert forgets != server
    assert "accounting" not in draft(pbs.machine(forgets, queues, nodes), None, Wish())


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(
    "answer",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"nodes": {}}',
        '{"Queue": 1, "nodes": [], "Server": "x"}',
        "cn01\n  Mom = cn01",
    ],
)
def test_garbage_is_told_with_the_question(number, answer):
    answers = pbs_answers()
    answers[number] = answer
    with pytest.raises(SchedulerError, match=r"'(qstat|pbsnodes) -.' answered"):
        pbs.machine(*answers)


@pytest.mark.parametrize(
    "damage", [('"00:05:00"', '"soon"'), ('"8gb"', '"8 apples"'), ('"ncpus":\t8', '"ncpus":\t"many"')]
)
def test_a_value_that_is_none_is_named(damage):
    answers = [answer.replace(*damage) for answer in pbs_answers()]
    with pytest.raises(SchedulerError, match=damage[1].split('"')[-2]):
        pbs.machine(*answers)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(["mem", "host", "ncpus", "resources_available", "resources_max", "walltime", "x"]), below, max_size=4),
    max_leaves=12,
)  # fmt: skip


def test_an_answer_that_is_nested_without_end_is_refused():
    server, queues, _ = pbs_answers()
    with pytest.raises(SchedulerError, match="'pbsnodes -a' answered what is no JSON"):
        pbs.machine(server, queues, "[" * 100_000)


@given(_JSON, _JSON)
def test_json_of_any_form_is_read_or_refused(queue, vnode):
    server, _, _ = pbs_answers()
    with contextlib.suppress(SchedulerError):
        pbs.machine(server, json.dumps({"Queue": {"q": queue}}), json.dumps({"nodes": {"n": vnode}}))
