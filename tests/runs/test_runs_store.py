"""Runs are found by id, prefix, path or `last`, and nothing a user names can leave the folder of runs."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs.written import prepared

from hpcdl.errors import UsageError
from hpcdl.runs import store
from hpcdl.runs.record import Attempt, RunState


def make(runs, name):
    folder = store.create(runs, name)
    folder.resolved.write_text("{}")
    store.note(folder, "created")
    return folder


@given(st.text(min_size=1))
def test_run_id_is_safe_whatever_the_name(name):
    """A name with spaces, quotes, ; or $() never reaches a shell: only the id does."""
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", store.run_id(name, 0.0))


def test_a_folder_of_runs_that_no_script_could_name_is_refused(tmp_path):
    """Linux takes any bytes for a name; a record is UTF-8."""
    with pytest.raises(UsageError, match="has a name that is not UTF-8"):
        store.runs_folder(tmp_path / "runs\udcff")


def test_run_id_is_unique_within_a_second():
    assert len({store.run_id("same", 0.0) for _ in range(50)}) > 45


def test_find_by_id_prefix_path_and_last(tmp_path):
    first, second = make(tmp_path, "alpha"), make(tmp_path, "beta")
    assert store.find("alpha", tmp_path) == first
    assert store.find(second.path.name, tmp_path) == second
    assert store.find(str(first.path), tmp_path) == first
    assert store.find("last", tmp_path) == second


def test_find_ambiguous_prefix_names_the_choices(tmp_path):
    names = {make(tmp_path, "same").path.name for _ in range(2)}
    with pytest.raises(UsageError) as refused:
        store.find("same", tmp_path)
    assert all(name in refused.value.message for name in names)


def test_find_unknown_run_names_the_nearest(tmp_path):
    make(tmp_path, "quickstart")
    with pytest.raises(UsageError, match="quickstart-"):
        store.find("quickstrat", tmp_path)
    with pytest.raises(UsageError, match="xxx"):  # was a crash
        store.find("x" * 5000, tmp_path)
    with pytest.raises(UsageError, match="no runs in"):
        store.find("last", tmp_path / "empty")


def test_create_where_nothing_can_be_written_names_the_folder(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UsageError, match=str(blocker)):
        store.create(blocker / "runs", "x")


def test_an_array_whose_folders_cannot_all_be_made_leaves_none_and_touches_no_other(tmp_path, monkeypatch):
    """Empty folders stayed behind; the one that is in the way belongs to somebody else."""
    monkeypatch.setattr(store, "run_id", lambda name, now: name)
    (tmp_path / "a-2").mkdir()
    with pytest.raises(UsageError, match="cannot create a run folder"):
        store.create_array(tmp_path, "a", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["a-2"]


def test_all_runs_in_a_file_instead_of_a_folder_is_refused(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UsageError, match="cannot read the runs"):
        store.all_runs(blocker)


def test_all_runs_passes_over_unfinished_preparations(tmp_path):
    store.create(tmp_path, "half")
    assert store.all_runs(tmp_path) == []


def test_note_change_writes_only_news(tmp_path):
    folder = make(tmp_path, "x")
    before = Attempt(1, "7", RunState.QUEUED)
    store.note_change(folder, before, before)
    size = folder.launcher_events.stat().st_size
    store.note_change(folder, before, Attempt(1, "7", RunState.RUNNING))
    assert folder.launcher_events.stat().st_size > size
    assert store.current(folder).state is RunState.RUNNING


def test_resolved_damaged_is_an_error_that_names_the_file(tmp_path):
    folder = make(tmp_path, "x")
    with pytest.raises(UsageError, match=re.escape(str(folder.resolved))):
        store.resolved(folder)


def test_evidence_of_a_torn_record_is_none(tmp_path):
    folder = make(tmp_path, "x")
    folder.exits(1).mkdir(parents=True)
    folder.job_exit(1).write_text('{"exit_c')
    folder.rank_exit(1, 0).write_text("{")
    assert store.evidence(folder, 1, 1).script_exit is None
    assert store.evidence(folder, 1, 1).ranks == []


COMMAND = "command: [echo, hello]\nresources: {gpus: 1}\n"


@pytest.mark.parametrize("own", [False, True])
def test_an_outline_says_what_the_whole_says(tmp_path, own):
    """A list reads only the outline of a run."""
    folder = prepared(tmp_path, text=COMMAND if own else None)
    whole, outline = store.resolved(folder), store.outline(folder)
    assert (outline.site, outline.steps) == (whole.site, whole.experiment.steps)
    assert outline.command == (whole.experiment.command.run if own else None)
    assert outline.decomposition == (None if own else whole.decomposition)
    folder.resolved.write_text("{}")
    with pytest.raises(UsageError, match=re.escape(str(folder.resolved))):
        store.outline(folder)
