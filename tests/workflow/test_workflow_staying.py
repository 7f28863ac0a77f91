"""A sweep that somebody waits for: every point that is to be submitted is, and nobody is asked too often."""

from __future__ import annotations

from pathlib import Path

import pytest
from workflow.sweeps import directive, scripts, sent, small_site

from hpcdl.errors import NoAnswerError, SchedulerError, UsageError
from hpcdl.runs import store
from hpcdl.runs.sweeps import groups
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.studies import preparing
from hpcdl.workflow.sweeps import calling_off, dispatching
from hpcdl.workflow.sweeps.dispatching import FAILED, WAITING
from hpcdl.workflow.sweeps.staying import Stay


def settle(folders, attempt, state):
    for folder in folders:
        store.note(folder, "observed", attempt, state=state, reason="")


@pytest.fixture
def narrow(terminal):
    """A site whose queue takes two jobs."""
    return small_site(terminal, "batch: {node: gpu", "batch: {max_jobs: 2, node: gpu")


@pytest.fixture
def parent(terminal):
    """A run that waits in the queue as job 70."""
    (folder,) = preparing.prepare(terminal.study(), terminal.runs)
    submitting.submit([folder])
    terminal.answer("squeue", "echo '70|PENDING|0|Priority'")
    return folder


def dependencies(terminal):
    return [directive(script, "--dependency") for script in scripts(terminal)]


def test_points_without_room_wait_for_the_same_runs_as_those_before_them(terminal, narrow, parent):
    """Only the first two were submitted after the run; the others began beside it."""
    group, done = sent(
        terminal, "{grid: {training.seed: [1, 2, 3, 4]}}", f"{parent.path.name}:any", site=narrow
    )
    assert groups.read(terminal.runs, group.name) == group
    settle(group.folders[:2], 1, "cancelled")
    stay = Stay(group, done.left)
    assert stay.go_on(stay.look()) == 2
    assert dependencies(terminal) == [None, "=afterany:70", "=afterany:70"]
    assert store.current(group.folders[3]).wait == f"for {parent.path.name} to end"


def test_points_are_not_submitted_where_what_they_wait_for_came_to_nothing(terminal, narrow, parent):
    """The run failed, Slurm cancelled the points that waited for it, and that made room for all others."""
    group, done = sent(terminal, "{grid: {training.seed: [1, 2, 3, 4]}}", "last", site=narrow)
    settle([parent], 1, "failed")
    settle(group.folders[:2], 1, "cancelled")
    stay, name = Stay(group, done.left), parent.path.name
    with pytest.raises(
        UsageError, match=f"points of {group.name} wait for {name}:ok: .* and failed"
    ) as caught:
        stay.go_on(stay.look())
    ways = (f"hpcdl resume {name} goes on", f"hpcdl resume {group.folders[2].path.name} submits that point")
    assert all(way in caught.value.hint for way in ways)
    assert len(terminal.submitted()) == 2
    submitting.resume(group.folders[2])
    assert dependencies(terminal)[-1] is None


def test_points_that_had_a_job_wait_for_nobody_any_more(terminal, parent):
    """As runs that are resumed: what they waited for may be gone since."""
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2]}}", "last")
    settle(group.folders, 1, "failed")
    store.discard(parent)
    dispatching.send(group, dispatching.chosen(group.folders, FAILED))
    (again,) = [Path(line.split()[-1]).read_text() for line in terminal.submitted()[2:]]
    assert directive(again, "--dependency") is None


def test_points_that_must_wait_for_two_things_are_held_until_one_is_over(terminal, narrow, parent):
    """They waited for the points before them alone, however the run ended."""
    group, done = sent(terminal, "{grid: {training.seed: [1, 2, 3]}, at_once: 3}", "last", site=narrow)
    settle(group.folders[:1], 1, "cancelled")
    assert dispatching.send(group, done.left) == dispatching.Sent({}, done.left)
    settle([parent], 1, "completed")
    assert dispatching.send(group, done.left).points == 1
    assert dependencies(terminal) == [None, "=afterok:70", "=afterany:71"]


def test_a_scheduler_that_is_away_when_asked_what_is_waited_for_is_asked_again(terminal, narrow, parent):
    group, done = sent(terminal, "{grid: {training.seed: [1, 2, 3]}}", "last", site=narrow)
    settle(group.folders[:2], 1, "completed")
    stay = Stay(group, done.left)
    seen = stay.look()
    terminal.answer("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(NoAnswerError, match="Unable to contact"):
        stay.go_on(seen)
    assert store.current(group.folders[2]).number == 0


def test_failed_points_without_room_are_submitted_as_soon_as_there_is_some(terminal, narrow):
    """They were forgotten: they stay failed until then, and only points never submitted were looked for."""
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2, 3, 4, 5]}}", site=narrow)
    folders = group.folders
    for folder in folders[2:]:
        store.note(folder, "submitted", 1, job_id="60")
    settle(folders, 1, "failed")
    done = dispatching.send(group, dispatching.chosen(folders, FAILED))
    assert (done.points, [member.folder for member in done.left]) == (2, folders[2:])
    stay = Stay(group, done.left)
    for first in (0, 2, 4):
        settle(folders[first : first + 2], 2, "completed")
        assert stay.go_on(stay.look()) == min(first + 2, 5)
    assert [store.current(folder).number for folder in folders] == [2] * 5


def test_a_point_that_somebody_else_submits_again_is_no_longer_ours(terminal, narrow):
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2, 3]}}", site=narrow)
    settle(group.folders[:2], 1, "failed")
    left = dispatching.chosen(group.folders[:1], FAILED)
    store.note(group.folders[0], "submitted", 2, job_id="80")
    settle(group.folders[:1], 2, "failed")
    assert [member.folder for member in Stay(group, left).look().waiting] == [group.folders[2]]


def test_cancelling_a_sweep_ends_it_for_who_waits_too(terminal, narrow):
    """Whoever waited submitted the points for which there had been no room: [cancelled × 2, queued × 2]."""
    group, done = sent(terminal, "{grid: {training.seed: [1, 2, 3, 4]}}", site=narrow)
    stay = Stay(group, done.left)
    terminal.answer("squeue", "printf '70_%d|RUNNING|0|None\\n' 0 1")
    terminal.answer("scancel", "true")
    assert calling_off.cancel(group) == (2, 0, 2)
    settle(group.folders[:2], 1, "cancelled")
    assert stay.go_on(stay.look()) == 4
    assert len(terminal.submitted()) == 1
    groups.call_on(group)
    assert len(stay.look().waiting) == 2


def test_what_is_just_being_submitted_when_a_sweep_is_cancelled_is_cancelled_by_who_submits(terminal):
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2]}}")
    settle(group.folders, 1, "failed")
    members = dispatching.chosen(group.folders, FAILED)
    terminal.answer("sbatch", f'[ "$1" = --test-only ] || {{ touch "{group.called_off}"; echo 71; }}')
    terminal.answer("scancel", f'echo "$*" >>"{terminal.folder}/cancelled"')
    dispatching.send(group, members)
    assert (terminal.folder / "cancelled").read_text() == "71\n"
    assert all(store.current(folder).cancel_requested for folder in group.folders)
    settle(group.folders, 2, "cancelled")
    members = dispatching.chosen(group.folders, dispatching.CANCELLED)
    assert dispatching.send(group, members) == dispatching.Sent({}, members)


def test_points_of_which_nobody_knows_are_asked_about_together(terminal):
    """Each lost point asked by itself, at every look."""
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2, 3]}}")
    settle(group.folders, 1, "lost")
    asked = terminal.folder / "asked"
    terminal.answer("squeue", f'echo "$*" >>"{asked}"')
    stay = Stay(group)
    for _ in range(3):
        assert stay.go_on(stay.look()) == 3
    assert len(asked.read_text().splitlines()) == 1
    for folder in group.folders:
        (why,) = (event for event in store.events(folder) if event.kind == "chain ended")
        assert why.detail["reason"] == "nobody knows how it ended"


def test_points_go_on_after_their_walltime_while_somebody_waits(terminal):
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2]}}")
    settle(group.folders, 1, "timeout")
    stay = Stay(group)
    assert stay.go_on(stay.look()) == 0
    assert [store.current(folder).number for folder in group.folders] == [2, 2]


def test_a_submission_whose_answer_is_lost_is_recognised_at_the_next_look(terminal, narrow, monkeypatch):
    """The wait ended there, with the job in the queue and points that nobody submitted any more."""
    monkeypatch.setattr("hpcdl.workflow.states.recognising.SUBMISSION_GRACE_S", 0.0)
    group, done = sent(terminal, "{grid: {training.seed: [1, 2, 3, 4]}}", site=narrow)
    settle(group.folders[:2], 1, "completed")
    stay = Stay(group, done.left)
    terminal.answer("sbatch", '[ "$1" = --test-only ] || echo')
    with pytest.raises(NoAnswerError):
        stay.go_on(stay.look())
    terminal.answer(
        "squeue", 'case "$*" in *--name=*) echo 90;; *) printf "90_%d|RUNNING|0|None\\n" 0 1;; esac'
    )
    assert stay.go_on(stay.look()) == 2
    assert [store.current(folder).job_id for folder in group.folders[2:]] == ["90_0", "90_1"]


def test_only_points_that_may_be_submitted_are_and_others_go_on(terminal, narrow):
    """Who waited for the points that failed submitted those that had never been submitted too."""
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2, 3, 4]}}", site=narrow)
    failed, stopped, *others = group.folders
    settle([failed], 1, "failed")
    settle([stopped], 1, "timeout")
    members = dispatching.chosen([failed], FAILED)
    stay = Stay(group, dispatching.send(group, members).left, [failed])
    assert stay.go_on(stay.look()) == 2
    assert [store.current(folder).number for folder in (failed, stopped)] == [2, 2]
    settle([failed, stopped], 2, "completed")
    assert stay.go_on(stay.look()) == 4
    assert [store.current(folder).number for folder in others] == [0, 0]


def test_a_refusal_ends_the_wait(terminal, narrow):
    group, done = sent(terminal, "{grid: {training.seed: [1, 2, 3]}}", site=narrow)
    settle(group.folders[:2], 1, "completed")
    stay = Stay(group, done.left)
    seen = stay.look()
    terminal.answer("sbatch", 'echo "sbatch: error: no" >&2; exit 1')
    with pytest.raises(SchedulerError, match="no"):
        stay.go_on(seen)
    assert dispatching.again(group, {store.current(group.folders[2]).state}) == f"hpcdl resume {group.name}"
    assert dispatching.again(group, FAILED | WAITING) == (
        f"hpcdl resume {group.name} and hpcdl resume {group.name} --failed"
    )
