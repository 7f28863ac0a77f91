"""One question: which programs are started for it, what comes back, and what follows from it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedulers.sample import site

from hpcdl.errors import SchedulerError
from hpcdl.schedulers.base import JobState, Report
from hpcdl.shell import Completed
from hpcdl.workflow.states.asking import LONGEST_PAUSE_S, Answer, Outside, ask, pause, put

RUNNING, DONE = Report(JobState.RUNNING, "RUNNING"), Report(JobState.COMPLETED, "COMPLETED", 0)

reports = st.builds(
    Report,
    st.sampled_from(JobState),
    st.text(),
    st.none() | st.integers(0, 255),
    st.none() | st.integers(1, 64),
)
answers = st.builds(
    Answer, st.integers(0), st.floats(0, 1e10), st.dictionaries(st.text(), st.booleans()),
    st.dictionaries(st.text(), reports), st.integers(0, 99), st.text(), st.none() | st.text(),
)  # fmt: skip


@given(answers)
def test_an_answer_is_read_as_it_was_written(answer):
    assert Answer.from_json(answer.to_json()) == answer


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"reports": 5}', '{"reports": {"1": {"state": "?"}}}']
)
def test_what_is_no_answer_is_refused(text):
    with pytest.raises((ValueError, TypeError, AttributeError, KeyError)):
        Answer.from_json(text)


@pytest.mark.parametrize(
    ("answer", "ended", "tells"),
    [
        (Answer(1, 0, {}, {}), False, False),  # nobody asked about it
        (Answer(1, 0, {"1": False}, {"1": RUNNING}), False, True),
        (Answer(1, 0, {"1": False}, {"1": RUNNING}), True, False),  # its script ended after the question
        (Answer(1, 0, {"1": True}, {"1": RUNNING}), True, True),
        (Answer(1, 0, {"1": True}, {"1": RUNNING}), False, True),  # it was requeued and began anew
        (Answer(1, 0, {"1": False}, {"1": DONE}), True, True),  # an end stays true
        (Answer(1, 0, {"1": False}, {}), False, True),  # unknown to the scheduler
        (Answer(1, 0, {"1": False}, {}), True, False),
        (Answer(1, 0, {"1": False}, {}, 1, "away"), False, False),
        (Answer(1, 0, {"1": True}, {}, 1, "away"), True, True),  # the script's own record stands
        (Answer(1, 0, {"1": False}, {}, 1, "away"), True, False),  # the scheduler may be back by now
    ],
)
def test_an_answer_tells_no_more_than_was_true_when_it_was_asked_for(answer, ended, tells):
    assert answer.tells("1", ended=ended) is tells


class Programs:
    """Answers by program, and the commands that were run."""

    def __init__(self, **answers):
        self.answers, self.commands = answers, []

    def outside(self):
        return Outside(run=self.run, now=lambda: 5.0)

    def run(self, command):
        self.commands.append(command[0])
        return self.answers[command[0]]


OPEN = Completed(0, "1|RUNNING|0|None\n", "")


def test_one_program_is_started_for_any_number_of_jobs():
    rows = "".join(f"{number}|COMPLETED|0|None\n" for number in range(1000))
    programs = Programs(squeue=Completed(0, rows, ""))
    found = ask(site(), [str(number) for number in range(1000)], programs.outside())
    assert (len(found), programs.commands) == (1000, ["squeue"])


@pytest.mark.parametrize(("accounting", "commands"), [(True, ["squeue", "sacct"]), (False, ["squeue"])])
def test_accounting_is_asked_for_what_is_left_open_and_only_where_users_may(accounting, commands):
    programs = Programs(squeue=OPEN, sacct=Completed(0, "2|east|TIMEOUT|0:0\n", ""))
    found = ask(site(scheduler={"accounting": accounting}), ["1", "2"], programs.outside())
    assert programs.commands == commands
    assert ("2" in found) is accounting


def test_a_job_that_runs_in_accounting_alone_may_long_be_over():
    """The database is told late, and of a runaway job never; its script's own record is then believed."""
    programs = Programs(squeue=OPEN, sacct=Completed(0, "2|east|RUNNING|0:0\n3|east|TIMEOUT|0:0\n", ""))
    found = ask(site(), ["1", "2", "3"], programs.outside())
    assert found["1"] == RUNNING
    assert found["2"] == Report(JobState.UNKNOWN, "RUNNING, by accounting alone", past=True)
    assert found["3"].state is JobState.TIMEOUT


def test_a_job_of_which_accounting_cannot_tell_now_has_not_vanished():
    programs = Programs(squeue=OPEN, sacct=Completed(1, "", "sacct: error: Connection refused"))
    found = ask(site(), ["1", "2"], programs.outside())
    assert found["1"] == RUNNING
    assert found["2"].state is JobState.UNKNOWN
    assert "Connection refused" in found["2"].words


@pytest.mark.parametrize(
    "said", [Completed(1, "", "Unable to contact slurm controller"), Completed(0, "<html>", "")]
)
def test_a_scheduler_that_does_not_answer_is_no_end_of_any_job(said):
    programs = Programs(squeue=said)
    with pytest.raises(SchedulerError):
        ask(site(), ["1"], programs.outside())
    asking = Answer(3, 5.0, {"1": False})
    answer = put(site(), Answer(2, 0.0, failures=4), asking, programs.outside())
    assert (answer.turn, answer.asked, answer.failures, answer.reports) == (3, 5.0, 5, {})
    assert said.words in answer.error


@given(st.integers(0, 10_000), st.floats(0.1, 1000))
def test_pauses_grow_while_nobody_answers_and_never_fall_below_the_floor(failures, floor):
    machine = site(scheduler={"poll_seconds": floor})
    assert pause(machine, 0) == floor
    assert floor <= pause(machine, failures) <= pause(machine, failures + 1) <= max(floor, LONGEST_PAUSE_S)


def test_an_answer_is_one_line_that_people_can_read():
    text = Answer(1, 2.0, {"7": False}, {"7": RUNNING}).to_json()
    assert text.count("\n") == 1
    assert json.loads(text)["reports"]["7"]["state"] == "running"
