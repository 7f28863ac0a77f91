"""The end of a sweep: every job is asked to end, and of each it is known whether it was."""

from __future__ import annotations

import pytest
from workflow.sweeps import sent, small_site

from hpcdl.errors import SchedulerError, UsageError
from hpcdl.runs import claims, store
from hpcdl.runs.chains.deciding import Stop
from hpcdl.workflow.jobs import going_on
from hpcdl.workflow.jobs.ending import end
from hpcdl.workflow.sweeps import calling_off


def kinds(folder):
    return [event.kind for event in store.events(folder) if event.kind.startswith("cancel")]


def test_cancelling_ends_each_array_with_one_word(terminal):
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2, 3]}}")
    terminal.answer("squeue", "printf '70_%d|RUNNING|0|None\\n' 0 1 2")
    terminal.answer("scancel", f'echo "$*" >>"{terminal.folder}/cancelled"')
    assert calling_off.cancel(group) == (3, 0, 0)
    assert (terminal.folder / "cancelled").read_text() == "70\n"
    assert all(store.current(folder).cancel_requested for folder in group.folders)


def test_one_array_that_cannot_be_cancelled_leaves_no_other_running(terminal):
    """The first refusal ended it all, after every point had been marked as one whose end is asked for.

    The newest array is first: one that waits for another would start in between.
    """
    site = small_site(terminal, "kind: slurm", "kind: slurm\n  max_array: 2")
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2, 3, 4, 5, 6]}}", site=site)
    terminal.answer("squeue", "printf '%s|RUNNING|0|None\\n' 70_0 70_1 71_0 71_1 72_0 72_1")
    says = f'echo "$*" >>"{terminal.folder}/cancelled"; [ "$*" != 71 ] || {{ echo "denied" >&2; exit 1; }}'
    terminal.answer("scancel", says)
    with pytest.raises(SchedulerError, match="denied") as caught:
        calling_off.cancel(group)
    assert (terminal.folder / "cancelled").read_text().split() == ["72", "71", "70"]
    assert caught.value.hint == (
        f"2 of 3 jobs of {group.name} were cancelled, and not 71; hpcdl cancel {group.name} tries again"
    )
    refused = [folder for folder in group.folders if "cancel refused" in kinds(folder)]
    assert refused == group.folders[2:4]
    assert all(kinds(folder)[0] == "cancel requested" for folder in group.folders)


def test_a_point_whose_job_has_just_submitted_the_next_is_told(terminal, monkeypatch):
    """The end of its old job was asked for, and the new one ran."""
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2]}}")
    terminal.answer("squeue", "printf '70_%d|RUNNING|0|None\\n' 0 1")
    terminal.answer("scancel", "true")

    def claimed_meanwhile(*args):
        assert claims.claim(group.folders[1], 2, "process 47-1@login9 00000000")
        end(*args)

    monkeypatch.setattr(calling_off, "end", claimed_meanwhile)
    with pytest.raises(UsageError, match="attempt 2 is being submitted by process 47 on login9"):
        calling_off.cancel(group)


def test_a_point_between_two_jobs_does_not_go_on(terminal):
    """Its job was over, so nobody was asked anything, and its next attempt came all the same."""
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2]}}")
    store.note(group.folders[0], "observed", 1, state="timeout", reason="")
    store.note(group.folders[1], "observed", 1, state="completed", reason="")
    assert calling_off.cancel(group) == (0, 1, 0)
    assert going_on.advance(group.folders[0]).decision == Stop("somebody wanted it to stop")
    assert kinds(group.folders[1]) == []
