"""A sweep that somebody waits for: every point that is to be submitted is, and nobody is asked too often."""

from __future__ import annotations

import pytest
from workflow.sweeps import sent, small_site

from hpcdl.errors import SchedulerError
from hpcdl.runs import store
from hpcdl.runs.sweeps import groups
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


def test_only_the_question_may_go_unanswered(terminal, narrow):
    """A refusal ends the wait; ``look`` alone asks, and so does what is caught of a scheduler that is away."""
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
