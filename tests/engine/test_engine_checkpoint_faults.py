"""What can go wrong with a checkpoint costs the checkpoint, is told, and never costs what was sound."""

import errno
import os
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from disks import fill, small_disk
from engine_keeping import CPU, SERIAL, Session, experiment, flip, names, tensors, trained
from engine_worlds import GPT, LLAMA, in_threads
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.checkpoint.completing import Desk, Incomplete, complete
from hpcdl.engine.checkpoint.manifest import (
    MANIFEST,
    Entry,
    Manifest,
    Shard,
    failure_name,
    index_name,
    parse,
    shard_name,
    unfinished_name,
)
from hpcdl.engine.checkpoint.saving import Saver
from hpcdl.engine.checkpoint.shards import write
from hpcdl.engine.keeping import Keeper
from hpcdl.engine.learner import Learner
from hpcdl.engine.tensor.parameters import Part
from hpcdl.engine.tensor.sharding import Sharding
from hpcdl.engine.topology import Topology
from hpcdl.errors import EngineError
from hpcdl.spec.checkpoint import Checkpoint
from hpcdl.spec.decomposition import Decomposition

PAIR = Decomposition(pipeline=2, microbatch=4)
HEAD = Manifest(step=5, loss=1.5, counters={"updates": 5.0}, model=GPT, decomposition=PAIR)


def tear(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        (shard_name(0), flip, "has another checksum"),
        (shard_name(1), flip, "has another checksum"),
        (shard_name(1), tear, "bytes instead of"),
        (shard_name(1), os.unlink, "is missing"),
        (MANIFEST, tear, "cannot be read"),
        (MANIFEST, os.unlink, "is missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_by_name_and_reason(tmp_path, capfd, file, damage, reason):
    expected, _ = trained(tmp_path, 3, PAIR)
    damage(tmp_path / "3" / file)
    losses, events = trained(tmp_path, 3, PAIR)
    assert losses == expected[2:]  # again from step 2
    kind, detail = events[0]
    assert (kind, detail["step"], detail["file"]) == ("checkpoint damaged", 3, file)
    assert reason in detail["reason"]
    assert f"checkpoint 3 is passed over: {tmp_path}/3/{file} {detail['reason']}" in capfd.readouterr().out


def test_where_all_are_damaged_training_does_not_start_again_unasked(tmp_path):
    trained(tmp_path, 2, PAIR)
    flip(tmp_path / "1" / shard_name(1))
    tear(tmp_path / "2" / shard_name(0))
    with pytest.raises(EngineError, match="none of the 2 checkpoints") as refused:
        trained(tmp_path, 3, PAIR)
    assert f"{tmp_path}/1/{shard_name(1)} has another checksum" in refused.value.message
    assert f"move {tmp_path} away to start from the beginning" in refused.value.hint


def test_one_that_was_never_finished_is_no_checkpoint(tmp_path):
    left = tmp_path / unfinished_name(2, 77)
    left.mkdir()
    (left / index_name(1)).write_text("of a killed attempt")
    losses, events = trained(tmp_path, 2, PAIR)
    assert len(losses) == 2
    assert [kind for kind, _ in events] == ["checkpoint", "checkpoint"]
    assert names(tmp_path) == ["1", "2"]


def test_one_that_was_never_finished_and_cannot_be_removed_is_left_there(tmp_path, monkeypatch):
    """NFS keeps what a rank that was cut off holds open: the run ended with "checkpoints cannot be written"."""
    left = tmp_path / unfinished_name(2, 77)
    left.mkdir()
    (left / ".nfs0001").touch()
    unlink = os.unlink

    def busy(path, **how):
        if os.fspath(path).endswith(".nfs0001"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        unlink(path, **how)

    monkeypatch.setattr(os, "unlink", busy)
    losses, _ = trained(tmp_path, 2)
    assert len(losses) == 2
    assert (left / ".nfs0001").exists()


def test_an_older_format_is_passed_over_by_its_number(tmp_path):
    trained(tmp_path, 2)
    path = tmp_path / "2" / MANIFEST
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    _, events = trained(tmp_path, 2)
    assert "its format is 1, this version reads 2" in events[0][1]["reason"]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (GPT.model_copy(update={"ffn": 16}), r"layers.0.mlp.up.weight has shape 32 × 16, expected 16 × 16"),
        (
            GPT.model_copy(update={"layers": 4}),
            r"layers.3.\S+ has shape none \(no such tensor\), expected 16",
        ),
        (GPT.model_copy(update={"layers": 2}), r"layers.2.\S+ has shape 16( × \d+)?, expected none"),
        (GPT.model_copy(update={"heads": 2, "kv_heads": 2}), "model.heads is 4, expected 2"),
        (LLAMA, "layers.0.attention.qkv.weight has shape 48 × 16, expected 32 × 16"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_found_and_expected(tmp_path, model, told):
    trained(tmp_path, 1)
    with pytest.raises(EngineError, match=told):
        trained(tmp_path, 2, settings=experiment(model))


# --- what cannot be written


class Filling(Session):
    """Trains on a disk that is full during step 2."""

    def report(self, kind, **detail):
        super().report(kind, **detail)
        ballast = self.folder.parent / "ballast"
        if detail["step"] == 1:
            fill(ballast)
        elif detail["step"] == 2:
            ballast.unlink()


def test_a_full_disk_costs_one_checkpoint_and_nothing_else(tmp_path, capfd):
    settings = experiment(asynchronous=False)
    expected = Session(tmp_path / "b", settings, SERIAL).run(3)
    with small_disk(tmp_path / "a") as disk:
        session = Filling(disk / "checkpoints", settings, SERIAL)
        assert session.run(3) == expected
        assert names(session.folder) == ["1", "3"]
    (_, good), (kind, bad), (_, again) = session.events
    assert (good["step"], kind, bad["step"], bad["rank"], again["step"]) == (1, "checkpoint failed", 2, 0, 3)
    assert "No space left on device" in bad["reason"]
    assert "warning: no checkpoint of step 2: rank 0:" in capfd.readouterr().out


@contextmanager
def small_files(limit):
    """No file of this process may grow beyond ``limit`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_may_not_grow_so_large_is_another_way_to_fail(tmp_path):
    """EFBIG, which needs no disk of its own; the shard of rank 1 is the larger one by far."""
    sizes = [path.stat().st_size for path in sorted(shards_of(tmp_path / "a"))]
    with small_files(sum(sizes) // 2):
        _, events = trained(tmp_path / "b", 2, PAIR)
    told = [(kind, detail["rank"], "File too large" in detail["reason"]) for kind, detail in events]
    larger = sizes.index(max(sizes))
    assert told == [("checkpoint failed", larger, True)] * 2
    assert names(tmp_path / "b") == []


def shards_of(folder):
    trained(folder, 1, PAIR)
    return (folder / "1").glob("*.safetensors")


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(
        EngineError, match=f"checkpoints cannot be written to {tmp_path}/checkpoints"
    ) as refused:
        trained(tmp_path / "checkpoints", 1)
    assert "checkpoint.every: 0" in refused.value.hint
    with small_disk(tmp_path / "sealed", "1m", "ro") as disk, pytest.raises(EngineError, match="Read-only"):
        trained(disk, 1)


def test_a_folder_that_goes_away_costs_its_checkpoints(tmp_path):
    """Somebody puts a file in its place while training runs: every rank fails, nobody waits for ever."""

    class Losing(Session):
        def report(self, kind, **detail):
            super().report(kind, **detail)
            if detail["step"] == 1:
                shutil.rmtree(self.folder)
                self.folder.write_text("")

    session = Losing(tmp_path / "checkpoints", experiment(asynchronous=False), PAIR)
    assert len(session.run(2)) == 2
    assert [kind for kind, _ in session.events] == ["checkpoint", "checkpoint failed"]


# --- ranks that meet in a folder


def desk(folder, patience_s=20.0):
    return Desk(folder, attempt=77, keep=2, patience_s=patience_s)


def left_by_rank_0(desk):
    """The unfinished checkpoint of two ranks, with the shard of the first."""
    folder = desk.unfinished(HEAD.step)
    folder.mkdir(parents=True)
    entry = Entry(name="w", shape=(4,), block=((0, 4),), span=(0, 4), kinds=("master",))
    write(folder, 0, [entry], {entry.key("master"): torch.ones(4)})
    return folder


@pytest.mark.parametrize(
    ("told", "reason"), [("disk quota exceeded", "disk quota exceeded"), ("", "nor why")]
)
def test_a_rank_that_failed_is_named_with_its_reason(tmp_path, told, reason):
    """Its reason may be lost: on a full disk the file that carries it can be empty."""
    folder = left_by_rank_0(desk(tmp_path))
    (folder / failure_name(1)).write_text(told)
    with pytest.raises(Incomplete) as failed:
        complete(desk(tmp_path), HEAD, None)
    assert failed.value.rank == 1
    assert reason in failed.value.reason
    assert names(tmp_path) == []


def test_a_rank_that_never_comes_is_not_waited_for_for_ever(tmp_path):
    left_by_rank_0(desk(tmp_path))
    with pytest.raises(Incomplete, match="wrote nothing within 0 s") as failed:
        complete(desk(tmp_path, patience_s=0.1), HEAD, None)
    assert failed.value.rank == 1
    assert names(tmp_path) == []


def saver(folder, rank, events, **settings):
    def report(kind, **detail):
        events.append((kind, detail["step"]))

    return Saver(desk(folder), Topology(PAIR, rank), Checkpoint(every=1, **settings), report)


def part(value):
    sharding = Sharding((4,), (None,), flat=False)
    return Part("w", sharding, slice(0, 4), {"master": torch.full((4,), value)}, writes=True)


def test_the_step_goes_on_while_another_rank_is_slow(tmp_path):
    """What changes after ``save`` has returned is not in the checkpoint; nothing is told before it is whole."""
    events, live = [], part(1.0)
    first, second = (saver(tmp_path, rank, events) for rank in (0, 1))
    first.save(HEAD, [live])
    live.tensors["master"].fill_(2.0)
    assert events == []
    assert names(tmp_path) != ["5"]
    second.save(HEAD, [])
    first.join()
    assert events == [("checkpoint", 5)]
    (kept,) = tensors(tmp_path / "5").values()
    assert kept.tolist() == [1.0] * 4


def test_a_save_waits_for_the_one_before_it_and_a_synchronous_one_for_itself(tmp_path):
    events = []
    late = HEAD.model_copy(update={"step": 6})
    first, second = saver(tmp_path, 0, events), saver(tmp_path, 1, events, asynchronous=False)
    with ThreadPoolExecutor(1) as pool:
        both = pool.submit(lambda: [first.save(head, [part(1.0)]) for head in (HEAD, late)])
        second.save(HEAD, [])
        both.result(timeout=20)
        assert ("checkpoint", 5) in events
        alone = pool.submit(saver(tmp_path / "c", 0, events, asynchronous=False).save, HEAD, [part(1.0)])
        with pytest.raises(TimeoutError):
            alone.result(timeout=0.2)
        saver(tmp_path / "c", 1, events).save(HEAD, [])
        alone.result(timeout=20)
    second.save(late, [])
    first.join()
    assert names(tmp_path) == ["5", "6", "c"]


# --- starting from weights


def test_weights_of_another_run_start_with_fresh_moments_in_any_decomposition(tmp_path):
    trained(tmp_path / "a", 2, PAIR)
    settings = experiment(start=str(tmp_path / "a" / "2"))
    serial, _ = trained(tmp_path / "b", 2, SERIAL, settings)
    spread, _ = trained(tmp_path / "c", 2, Decomposition(x=2, z=2), settings)
    went_on, _ = trained(tmp_path / "a", 3, PAIR)
    assert spread == pytest.approx(serial, rel=2e-6)
    assert serial[0] != went_on[0]  # step 1's batch, not step 3's
    assert parse((tmp_path / "b" / "2" / MANIFEST).read_text()).counters == {"updates": 2}
    first = in_threads(1, lambda door: moments(door, tmp_path / "d", settings))[0]
    assert all(not values.any() for values in first)


def moments(transport, folder, settings):
    learner = Learner(settings, SERIAL, transport, CPU)
    Keeper(settings, folder, learner, lambda *_, **__: None).restore()
    return [part.tensors[kind] for part in learner.parts() for kind in ("exp_avg", "exp_avg_sq")]


def test_a_run_that_has_a_checkpoint_goes_on_from_it_and_not_from_the_start(tmp_path):
    settings = experiment(start=str(tmp_path / "a" / "1"))
    trained(tmp_path / "a", 1)
    undisturbed, _ = trained(tmp_path / "b", 3, SERIAL, settings)
    shutil.rmtree(tmp_path / "b" / "3")
    assert trained(tmp_path / "b", 3, SERIAL, settings)[0] == undisturbed[2:]


def test_damaged_weights_to_start_from_are_refused(tmp_path):
    trained(tmp_path / "a", 1)
    flip(tmp_path / "a" / "1" / shard_name(0))
    with pytest.raises(EngineError, match=f"start {tmp_path}/a/1 is damaged: {shard_name(0)} has another"):
        trained(tmp_path / "b", 1, SERIAL, experiment(start=str(tmp_path / "a" / "1")))


# --- the manifest


@given(st.integers(1, 10**9), st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 2**32 - 1))
def test_a_manifest_round_trips(step, loss, crc32):
    entry = Entry(name="w", shape=(4, 6), block=((0, 2), (3, 6)), span=(1, 5), kinds=("master", "exp_avg"))
    shard = Shard(file=shard_name(3), size=24, crc32=crc32, entries=(entry,))
    manifest = HEAD.model_copy(update={"step": step, "loss": loss, "shards": (shard,)})
    assert parse(manifest.model_dump_json()) == manifest


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"step": 1}', HEAD.model_dump_json().replace(":2,", ":9,", 1)]
)
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's own words
        parse(text)
