"""Which checkpoints are kept, and that none is removed before another is safe."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from engine_keeping import CPU, SERIAL, experiment, flip, names, trained
from engine_worlds import GPT, in_threads
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.checkpoint.completing import Desk, Incomplete, complete
from hpcdl.engine.checkpoint.manifest import (
    MANIFEST,
    Entry,
    Manifest,
    shard_name,
    superfluous,
    unfinished_name,
)
from hpcdl.engine.checkpoint.manifest import complete as finished
from hpcdl.engine.checkpoint.shards import write
from hpcdl.engine.keeping import Keeper, Progress
from hpcdl.engine.learner import Learner

HEAD = Manifest(step=5, loss=1.5, counters={}, model=GPT, decomposition=SERIAL)


def test_only_the_last_are_kept(tmp_path):
    trained(tmp_path, 4)
    assert names(tmp_path) == ["3", "4"]


def test_a_damaged_later_one_does_not_push_out_a_sound_one(tmp_path):
    trained(tmp_path, 3)
    (tmp_path / "3").rename(tmp_path / "9")
    (tmp_path / "9" / MANIFEST).unlink()
    trained(tmp_path, 3, settings=experiment(keep=1))
    assert names(tmp_path) == ["3", "9"]


def test_one_that_was_passed_over_does_not_push_out_the_one_gone_on_from(tmp_path):
    """Of a sound 2 and a damaged 3, keeping two, the save of 4 removed 2 and kept 3."""
    kept = experiment(keep=2)
    trained(tmp_path, 3, settings=kept)
    flip(tmp_path / "3" / shard_name(0))

    def go_on(transport):
        keeper = Keeper(kept, tmp_path, Learner(kept, SERIAL, transport, CPU), lambda *_, **__: None)
        assert keeper.restore().step == 2
        keeper.save(Progress(4, 0.0))
        keeper.join()

    in_threads(1, go_on)
    assert names(tmp_path) == ["2", "4"]


def test_one_that_was_passed_over_and_is_written_anew_is_sound_again(tmp_path):
    kept = experiment(keep=2)
    trained(tmp_path, 3, settings=kept)
    flip(tmp_path / "3" / shard_name(0))
    trained(tmp_path, 4, settings=kept)
    assert names(tmp_path) == ["3", "4"]


@given(st.sets(st.integers(0, 1000)), st.integers(1, 5), st.integers(0, 1000))
def test_superfluous_never_names_the_newest_nor_what_is_being_written(steps, keep, now):
    named = [str(step) for step in steps] + [unfinished_name(step, 5) for step in steps]
    kept = set(named) - set(superfluous(named, now, keep))
    past = sorted(step for step in steps if step <= now)
    ahead = {step for step in steps if step > now}
    assert set(finished(kept)) == {*past[-keep:], *ahead}
    assert {name for name in kept if name.startswith(".")} == {unfinished_name(step, 5) for step in ahead}


@given(st.sets(st.integers(0, 1000)), st.sets(st.integers(0, 1000)), st.integers(1, 5), st.integers(0, 1000))
def test_damaged_ones_push_out_no_sound_one_and_go_when_enough_are_sound(sound, damaged, keep, now):
    damaged -= sound
    removed = set(superfluous(map(str, sound | damaged), now, keep, damaged))
    past = sorted(step for step in sound if step <= now)
    assert set(finished(removed)) & sound == set(past[:-keep])
    assert set(finished(removed)) - sound == {step for step in damaged if step <= now and len(past) >= keep}


# --- the disk


@pytest.fixture
def desk(tmp_path):
    """Where two checkpoints lie, and the only rank has left its shard of a third."""
    for step in ("3", "4"):
        (tmp_path / step).mkdir()
    desk = Desk(tmp_path, attempt=77, keep=2)
    folder = desk.unfinished(HEAD.step)
    folder.mkdir()
    entry = Entry(name="w", shape=(4,), block=((0, 4),), span=(0, 4), kinds=("master",))
    write(folder, 0, [entry], {entry.key("master"): torch.ones(4)})
    return desk


@pytest.mark.parametrize("folders", [0, errno.EINVAL], ids=["brought", "not by this file system"])
def test_older_ones_are_removed_when_the_new_one_is_on_the_disk(desk, tmp_path, monkeypatch, folders):
    """A host that crashed in between left one without a manifest, and had removed those before it."""
    calls, sync, rename, rmtree = [], os.fsync, Path.rename, shutil.rmtree

    def noted_sync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        calls.append(("sync", str(path.relative_to(tmp_path))))
        if path.is_dir() and folders:
            raise OSError(folders, os.strerror(folders))
        sync(descriptor)

    def noted_rename(path, target):
        calls.append(("rename", path.name))
        return rename(path, target)

    def noted_rmtree(path, **how):
        calls.append(("remove", path.name))
        rmtree(path, **how)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    monkeypatch.setattr(shutil, "rmtree", noted_rmtree)
    complete(desk, HEAD, None)
    part = unfinished_name(HEAD.step, 77)
    assert calls == [
        ("sync", f"{part}/{MANIFEST}"), ("sync", part), ("rename", part), ("sync", "."), ("remove", "3")
    ]  # fmt: skip


def test_no_older_one_is_removed_where_the_disk_fails(desk, tmp_path, monkeypatch):
    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(Incomplete, match="Input/output error"):
        complete(desk, HEAD, None)
    assert names(tmp_path) == ["3", "4"]
