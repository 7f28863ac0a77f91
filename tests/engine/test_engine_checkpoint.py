"""A checkpoint is complete or it is not there."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.checkpoint.manifest import MANIFEST, Manifest, complete, dump, parse, superfluous
from hpcdl.engine.checkpoint.sharded import Checkpoints
from hpcdl.errors import EngineError
from hpcdl.spec.decomposition import Decomposition

ONE = Decomposition()


def nobody_else():
    """The barrier of a single rank."""


def saved(folder, *steps, keep=2):
    checkpoints = Checkpoints(folder, ONE, 0, keep)
    for step in steps:
        checkpoints.save(step, {"weight": torch.full((3,), float(step))}, nobody_else)
    return checkpoints


def test_newest_is_what_was_saved_last(tmp_path):
    step, state = saved(tmp_path, 5, 10).newest()
    assert step == 10
    assert state["weight"].tolist() == [10.0] * 3


def test_none_before_the_first(tmp_path):
    assert saved(tmp_path / "none").newest() is None


def test_only_the_last_are_kept(tmp_path):
    saved(tmp_path, 5, 10, 15, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "15"]


@pytest.mark.parametrize("lost", [MANIFEST, "rank-00000.pt"])
def test_a_checkpoint_that_lost_a_file_is_passed_over(tmp_path, lost):
    checkpoints = saved(tmp_path, 5, 10)
    (tmp_path / "10" / lost).unlink()
    assert checkpoints.newest()[0] == 5


def test_one_that_was_never_finished_is_not_seen_and_removed_by_the_next(tmp_path):
    checkpoints = saved(tmp_path, 5)
    (tmp_path / ".7.part").mkdir()
    assert checkpoints.newest()[0] == 5
    saved(tmp_path, 10)
    assert not (tmp_path / ".7.part").exists()


def test_a_repeated_step_replaces_the_old_one(tmp_path):
    saved(tmp_path, 5)
    Checkpoints(tmp_path, ONE, 0, 2).save(5, {"weight": torch.zeros(1)}, nobody_else)
    assert saved(tmp_path).newest()[1]["weight"].tolist() == [0.0]


def test_another_decomposition_is_refused_by_name(tmp_path):
    saved(tmp_path, 5)
    with pytest.raises(EngineError, match="'data': 2"):
        Checkpoints(tmp_path, Decomposition(data=2), 0, 2).newest()


@given(st.integers(0, 10**9), st.integers(1, 4096))
def test_manifest_round_trips(step, shards):
    manifest = Manifest(step, {"data": 2}, shards)
    assert parse(dump(manifest)) == manifest


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"step": 1}', '{"step":1,"degrees":{},"shards":1,"format":9}']
)
def test_what_is_no_manifest_is_none(text):
    assert parse(text) is None


@given(st.sets(st.integers(0, 1000)), st.integers(1, 5))
def test_superfluous_never_names_the_newest(steps, keep):
    names = [str(step) for step in steps]
    kept = set(names) - set(superfluous(names, keep))
    assert sorted(map(int, kept)) == sorted(steps)[-keep:]
    assert complete([*names, ".3.part", "x"]) == sorted(steps)
