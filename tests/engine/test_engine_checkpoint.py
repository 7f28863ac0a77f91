"""A checkpoint is complete or it is not there."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

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


def test_a_damaged_later_one_does_not_push_out_a_sound_one(tmp_path):
    saved(tmp_path, 5, 10)
    (tmp_path / "10" / MANIFEST).unlink()
    assert saved(tmp_path, 7, keep=1).newest()[0] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "7"]


def test_a_torn_shard_is_named_with_the_way_out(tmp_path):
    checkpoints = saved(tmp_path, 5)
    shard = tmp_path / "5" / "rank-00000.pt"
    for content in (shard.read_bytes()[:200], b"", b"text"):
        shard.write_bytes(content)
        with pytest.raises(EngineError, match=r"5/rank-00000\.pt cannot be read") as refused:
            checkpoints.newest()
        assert f"move {tmp_path}/5 away" in refused.value.hint


def test_ranks_save_and_load_their_own_part_of_one_step(tmp_path):
    """Rank 1 is the slow one: nothing is complete before it has written."""
    two, ready = Decomposition(data=2), threading.Barrier(2)
    ranks = [Checkpoints(tmp_path, two, rank, 2) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ranks[0].save, 5, {"rank": 0}, ready.wait)
        time.sleep(0.1)
        assert ranks[0].newest() is None
        ranks[1].save(5, {"rank": 1}, ready.wait)
        first.result()
    assert [rank.newest() for rank in ranks] == [(5, {"rank": 0}), (5, {"rank": 1})]


def test_rank_0_decides_where_all_go_on(tmp_path):
    """Another rank may see a newer checkpoint, or none yet."""
    ready = threading.Barrier(2)
    ranks = [Checkpoints(tmp_path, Decomposition(data=2), rank, 2) for rank in (0, 1)]
    for step in (5, 10):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda one, s=step: one.save(s, {"step": s}, ready.wait), ranks))
    assert ranks[0].newest(lambda step: step) == (10, {"step": 10})
    assert ranks[1].newest(lambda _: 5) == (5, {"step": 5})
    assert ranks[1].newest(lambda _: 0) is None
    with pytest.raises(EngineError, match="rank 1 cannot read"):
        ranks[1].newest(lambda _: 15)


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
    kept = set(names) - set(superfluous(names, 1000, keep))
    assert sorted(map(int, kept)) == sorted(steps)[-keep:]
    assert complete([*names, ".3.part", "x"]) == sorted(steps)
