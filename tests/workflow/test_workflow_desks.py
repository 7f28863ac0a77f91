"""Desks: who asks, who waits, who reads; and what happens where somebody fails."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from disks import fill, small_disk
from schedulers.sample import site
from workflow.crowd import Clock, Slurm, end, runs

from hpcdl import shell
from hpcdl.errors import SchedulerError
from hpcdl.runs import store
from hpcdl.runs.record import RunState
from hpcdl.runs.turns import Turns
from hpcdl.shell import Completed
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.states import following
from hpcdl.workflow.states.asking import LONGEST_PAUSE_S, Outside
from hpcdl.workflow.states.desks import TURN_EXPIRES_S, Private, Shared, desk_for


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    stand_in = Slurm(tmp_path)
    monkeypatch.setenv("PATH", f"{stand_in.bin}:{os.environ['PATH']}")
    return stand_in


@pytest.fixture
def clock():
    return Clock()


def states(folders, clock):
    return [attempt.state for attempt in following.refresh(folders, clock.outside())]


def place(folder):
    (found,) = (folder.path.parent / ".schedulers").iterdir()
    return found


def test_who_looks_within_the_floor_reads_what_another_asked(slurm, clock, tmp_path):
    folders = runs(tmp_path, 3)
    for number in "123":
        slurm.say(number, "RUNNING")
    assert states(folders, clock) == [RunState.RUNNING] * 3
    clock.sleep(9)
    assert states(folders[:1], clock) == [RunState.RUNNING]
    assert slurm.asked == 1
    clock.sleep(2)
    states(folders[1:], clock)
    assert slurm.asked == 2


def test_a_job_nobody_asked_about_is_asked_about_at_once(slurm, clock, tmp_path):
    first, second = runs(tmp_path, 2)
    slurm.say("1", "RUNNING")
    slurm.say("2", "RUNNING")
    assert states([first], clock) + states([second], clock) == [RunState.RUNNING] * 2
    assert slurm.asked == 2


def test_a_run_whose_script_has_ended_is_not_told_from_an_older_answer(slurm, clock, tmp_path):
    (folder,) = runs(tmp_path, 1)
    slurm.say("1", "RUNNING")
    states([folder], clock)
    end(folder)
    slurm.say("1", "COMPLETING")
    assert states([folder], clock) == [RunState.RUNNING]
    slurm.say("1", "TIMEOUT", reason="TimeLimit")
    assert states([folder], clock) == [RunState.TIMEOUT]
    assert states([folder], clock) == [RunState.TIMEOUT]
    assert slurm.asked == 3


def test_a_job_is_not_lost_because_it_was_asked_about_too_early(slurm, clock, tmp_path):
    """Slurm did not show it yet; the answer is read when it should long have been there."""
    (folder,) = runs(tmp_path, 1)
    clock.time = store.current(folder).submitted + 5
    assert states([folder], clock) == [RunState.QUEUED]
    clock.sleep(8)
    assert states([folder], clock) == [RunState.QUEUED]
    clock.sleep(8)
    assert states([folder], clock) == [RunState.LOST]


def test_resuming_is_decided_by_an_answer_of_now(slurm, clock, tmp_path):
    (folder,) = runs(tmp_path, 1)
    slurm.program("sbatch", "#!/bin/sh\n[ $1 = --test-only ] || echo 2\n")
    slurm.say("1", "RUNNING")
    following.refresh([folder])
    slurm.say("1", "NODE_FAIL")
    assert submitting.resume(folder) == "2"


def test_while_somebody_is_asking_others_wait_for_the_answer(slurm, clock, tmp_path):
    (folder,) = runs(tmp_path, 1)
    slurm.say("1", "RUNNING")
    machine = following.site_of(folder)

    def outer(command):
        """In the middle of the question another process looks."""
        desk = desk_for(folder.path.parent, machine, "1", clock.outside())
        assert desk.ask({"1": folder.job_exit(1)}, hurry=True) is None
        return Completed(0, "1|RUNNING|0|None\n", "")

    following.refresh([folder], Outside(outer, lambda: clock.time, lambda _: None))
    assert states([folder], clock) == [RunState.RUNNING]
    assert slurm.asked == 0


def test_a_turn_that_nobody_finished_is_passed_over(slurm, clock, tmp_path):
    (folder,) = runs(tmp_path, 1)
    slurm.say("1", "RUNNING")
    states([folder], clock)
    clock.sleep(20)
    turns = Turns(place(folder) / "turns")
    assert turns.take(turns.newest(), clock.time)  # and its owner is killed
    watched = following.watch(folder, outside=clock.outside())
    slurm.say("1", "PENDING")
    clock.sleep(TURN_EXPIRES_S - 1)
    assert next(watched).attempt.state is RunState.RUNNING
    clock.sleep(2)
    assert next(watched).attempt.state is RunState.QUEUED


def test_a_question_that_is_broken_off_leaves_nobody_waiting(slurm, clock, tmp_path):
    (folder,) = runs(tmp_path, 1)
    slurm.say("1", "RUNNING")

    def interrupted(command):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        following.refresh([folder], Outside(interrupted, lambda: clock.time, clock.sleep))
    assert states([folder], clock) == [RunState.RUNNING]


def test_watchers_ask_less_and_less_while_nobody_answers(slurm, clock, tmp_path):
    (folder,) = runs(tmp_path, 1)
    slurm.say("1", "RUNNING")
    watched = following.watch(folder, outside=clock.outside())
    next(watched)
    slurm.go_away()
    began = slurm.asked
    for _ in range(600):
        clock.sleep(1)
        assert next(watched).attempt.state is RunState.RUNNING  # as last seen
    assert slurm.asked - began == len([10, 20 + 10, 40 + 30, 80 + 70, 120 + 150, 120 + 270, 120 + 390])
    slurm.come_back()
    slurm.say("1", "COMPLETED")
    clock.sleep(LONGEST_PAUSE_S)
    assert next(watched).attempt.state is RunState.COMPLETED


def test_who_asks_once_is_told_that_the_scheduler_is_away_without_asking_it_again(slurm, clock, tmp_path):
    folders = runs(tmp_path, 2)
    slurm.go_away()
    for folder in folders:
        with pytest.raises(SchedulerError, match="Unable to contact slurm controller"):
            following.refresh([folder], clock.outside())
    assert slurm.asked == 1
    slurm.come_back()
    slurm.say("1", "RUNNING")
    clock.sleep(11)
    assert states(folders[:1], clock) == [RunState.RUNNING]


def test_a_scheduler_that_hangs_is_given_up_and_not_asked_by_the_others(slurm, clock, tmp_path):
    folders = runs(tmp_path, 2)
    slurm.program("squeue", f"#!/bin/bash\ndate >>{tmp_path}/states/asked\nexec sleep 30\n")
    outside = Outside(lambda command: shell.run(command, timeout_s=3.0), lambda: clock.time, lambda _: None)
    for folder in folders:
        with pytest.raises(SchedulerError, match="'squeue' gave no answer within 3 s"):
            following.refresh([folder], outside)
    assert slurm.asked == 1


def test_runs_that_were_deleted_are_asked_about_no_more(slurm, clock, tmp_path):
    first, second = runs(tmp_path, 2)
    states([first, second], clock)
    store.discard(first)
    clock.sleep(11)
    states([second], clock)
    assert list(json.loads((place(second) / "answer.json").read_text())["ended"]) == ["2"]


def test_clocks_that_differ_between_hosts_stop_nobody_for_long(slurm, clock, tmp_path):
    (folder,) = runs(tmp_path, 1)
    slurm.say("1", "RUNNING")
    ahead = Clock()
    ahead.sleep(3600)
    states([folder], ahead)
    slurm.say("1", "COMPLETED")
    watched = following.watch(folder, outside=clock.outside())
    assert next(watched).attempt.state is RunState.COMPLETED


@pytest.mark.parametrize("rubbish", ["", "{", "[1]", '{"turn": 5}', '{"reports": {}, "what": 1}'])
def test_an_answer_that_is_rubbish_is_none(slurm, clock, tmp_path, rubbish):
    (folder,) = runs(tmp_path, 1)
    slurm.say("1", "RUNNING")
    states([folder], clock)
    (place(folder) / "answer.json").write_text(rubbish)
    clock.sleep(TURN_EXPIRES_S)
    assert states([folder], clock) == [RunState.RUNNING]


@pytest.mark.parametrize("job_id", ["1", "16_2;east", "ƒ3Xa/b", "123[].server", "../../x", "a b\n"])
def test_any_job_id_has_a_place(clock, tmp_path, job_id):
    outside = Outside(lambda _: Completed(1, "", "what?"), lambda: clock.time)
    answer = Shared(tmp_path / "desk", site("pbs"), outside).ask({job_id: tmp_path / "job.json"})
    assert list(answer.ended) == [job_id]


def test_jobs_of_several_clusters_are_asked_for_one_by_one(slurm, clock, tmp_path):
    folders = runs(tmp_path, 3)
    for folder, job_id in zip(folders, ("1;east", "1;west", "2;east"), strict=True):
        store.note(folder, "submitted", 1, job_id=job_id)
    commands = []

    def run(command):
        commands.append(command)
        if "--clusters=west" in command:
            return Completed(1, "", "squeue: error: 'west' can't be reached now")
        return Completed(0, "1;east|RUNNING|0|None\n2;east|COMPLETED|0|None", "")

    with pytest.raises(SchedulerError, match="'west' can't be reached now"):
        following.refresh(folders, Outside(run, lambda: clock.time, clock.sleep))
    assert [command[-1] for command in commands] == ["--jobs=1,2", "--jobs=1"]
    assert [store.current(folder).state for folder in folders] == [
        RunState.RUNNING, RunState.QUEUED, RunState.COMPLETED,
    ]  # fmt: skip


def test_who_may_not_write_asks_for_himself(clock, tmp_path, slurm):
    """A file where the folder should be: as root, permissions would stop nobody."""
    (folder,) = runs(tmp_path, 1)
    (folder.path.parent / ".schedulers").touch()
    desk = desk_for(folder.path.parent, following.site_of(folder), "1", clock.outside())
    assert isinstance(desk, Private)
    slurm.say("1", "RUNNING")
    for _ in range(3):
        desk.ask({"1": Path("/nowhere")})
    assert slurm.asked == 1


def test_a_machine_without_the_scheduler_takes_no_turns(clock, tmp_path, monkeypatch):
    (folder,) = runs(tmp_path, 1)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SchedulerError, match="cannot run 'squeue'"):
        following.refresh([folder], clock.outside())
    assert not (folder.path.parent / ".schedulers").exists()


def test_on_a_full_disk_one_still_sees_how_runs_stand(slurm, clock, tmp_path):
    """`list` once said nothing at all there, and the next one waited for an answer that nobody could write."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        folders = runs(disk, 2)
        for number in "12":
            slurm.say(number, "RUNNING")
        fill(disk / "full")
        began = clock.outside().now()
        for _ in range(2):
            assert states(folders, clock) == [RunState.RUNNING] * 2
        assert clock.outside().now() == began


def test_whoever_watches_on_a_full_disk_keeps_to_the_floor(slurm, clock, tmp_path):
    with small_disk(tmp_path / "disk", "2m") as disk:
        folders = runs(disk, 1)
        slurm.say("1", "RUNNING")
        fill(disk / "full")
        seen = following.attempts_of(folders[0], 1.0, clock.outside())
        assert [next(seen).state for _ in range(30)] == [RunState.RUNNING] * 30
        assert slurm.asked <= 3
