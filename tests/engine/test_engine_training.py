"""The engine as a job starts it: real processes, real files, real faults."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from engine_runs import MODEL, SERIAL, TRAINING, Run, finished, wait_until
from quick import first_of

from hpcdl.engine.transport.dist import _blaming_the_lost
from hpcdl.errors import PeerLostError
from hpcdl.runs import store
from hpcdl.runs.blame import first_failure
from hpcdl.spec.decomposition import Decomposition


@pytest.fixture(scope="module")
def serial_losses(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("serial"), SERIAL).complete().losses()


@pytest.mark.parametrize(
    "decomposition",
    [
        Decomposition(pipeline=2, x=2, microbatch=3, interleave=2, defer_weights=True),
        pytest.param(Decomposition(y=2, z=2, recompute="full"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_four_processes_train_the_curve_of_one(tmp_path, serial_losses, decomposition):
    run = Run(tmp_path, decomposition).complete()
    assert len(serial_losses) == TRAINING["steps"]
    assert serial_losses[-1] < serial_losses[0] - 0.5
    for rank in range(4):
        assert run.losses(rank) == pytest.approx(serial_losses, rel=1e-5)
    assert {record.exit_code for record in run.exits().values()} == {0}
    placed, started, ended = run.events()
    assert placed.kind == "placed"
    assert (started.kind, started.detail["ranks"], started.detail["hosts"]) == ("started", 4, 1)
    assert started.detail["steps"] == TRAINING["steps"]
    # Two groups along each axis and the world; along the pipeline they join the ends of a tied embedding, and
    # z gathers weights in a lane of its own.
    assert started.detail["groups"] == (
        {"rank_0": 4, "world": 7} if decomposition.z > 1 else {"rank_0": 3, "world": 5}
    )
    assert (ended.kind, ended.detail) == ("finished", {"step": 6, "loss": run.losses()[-1]})


@pytest.fixture
def mixed(tmp_path):
    """Text and token files, whole documents, a part held out, evaluated now and then."""
    shards = tmp_path / "shards"
    shards.mkdir()
    for index in range(3):
        np.save(shards / f"{index}.npy", np.tile(np.arange(1, 20, dtype=np.uint16), 60))
        np.save(shards / f"{index}-ends.npy", np.tile(np.array([7, 8, 9, 0], dtype=np.uint16), 60))
    texts = tmp_path / "texts"
    texts.mkdir()
    for index in range(60):
        (texts / f"{index:02d}.txt").write_text("the quick brown fox jumps over it. "[: 5 + index % 30])
    sources = [
        {"path": str(texts), "weight": 3},
        {"source": "tokens", "path": str(shards), "document_end": 0},
    ]
    data = {"sources": sources, "packing": "fit", "validation": 0.2}
    return {"data": data, "evaluation": {"every": 4, "sequences": 6}}


def validation(run, rank=0):
    return {each.step: each.validation_loss for each in run.steps(rank) if each.validation_loss is not None}


@pytest.mark.parametrize(
    "decomposition",
    [
        Decomposition(pipeline=2, data=2, microbatch=2),
        pytest.param(Decomposition(pipeline=2, x=2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_packed_mixed_and_held_out_data_are_the_same_in_every_decomposition(tmp_path, mixed, decomposition):
    """Padding makes shards unequal; held-out sequences are evaluated every four steps and at the end."""
    serial = Run(tmp_path / "serial", SERIAL, **mixed).complete()
    run = Run(tmp_path / "spread", decomposition, **mixed).complete()
    assert set(validation(serial)) == {4, 6}
    assert validation(serial)[6] < validation(serial)[4]
    for rank in range(decomposition.ranks):
        assert run.losses(rank) == pytest.approx(serial.losses(), rel=1e-5)
        assert validation(run, rank) == pytest.approx(validation(serial), rel=1e-5)
    told = [event.detail for event in run.events() if event.kind == "evaluated"]
    assert told == [{"step": step, "loss": loss} for step, loss in validation(run).items()]
    assert "validation loss" in run.log(0)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("transport", "precision"),
    [
        *first_of(("mixed", "fp32"), ("mpi", "bf16"), ("mpi", "fp32"), ("mixed", "bf16")),
    ],
)
def test_four_mpi_processes_train_the_curve_of_one(tmp_path, serial_losses, transport, precision):
    """bf16 would be garbage if MPI reduced it: Open MPI sums it wrongly, MPICH refuses."""
    changes = {"communication": {"transport": transport}, "training": TRAINING | {"precision": precision}}
    decomposition = Decomposition(pipeline=2, data=2, microbatch=3, interleave=2, defer_weights=True)
    run = Run(tmp_path, decomposition, **changes)
    run.complete_mpi()
    assert run.losses(3) == pytest.approx(serial_losses, rel=1e-5 if precision == "fp32" else 5e-2)
    assert {record.exit_code for record in run.exits().values()} == {0}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.slow
def test_a_restarted_run_goes_on_to_the_bit(tmp_path, precision):
    """Killed after its checkpoint and started again, it records the very numbers of an undisturbed run."""
    changes = {"training": TRAINING | {"precision": precision, "steps": 8}, "checkpoint": {"every": 3}}
    decomposition = Decomposition(data=2, microbatch=2)
    undisturbed = Run(tmp_path / "a", decomposition, **changes).complete()
    run = Run(tmp_path / "b", decomposition, **changes).complete()
    shutil.rmtree(run.folder.checkpoints / "8")  # as if killed in step 7 or 8
    run.complete(attempt=2)
    assert run.losses()[:8] == undisturbed.losses()
    assert [(r.step, r.loss, r.grad_norm) for r in run.steps()[8:]] == [
        (r.step, r.loss, r.grad_norm) for r in undisturbed.steps()[6:]
    ]
    assert [event.detail["step"] for event in run.events() if event.kind == "checkpoint"] == [3, 6, 8, 8]


@pytest.mark.slow
def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    run = Run(tmp_path, SERIAL, checkpoint={"every": 100}).complete().complete(attempt=2)
    assert len(run.steps()) == TRAINING["steps"]
    assert run.events()[-1].detail == {"step": 6, "loss": run.losses()[-1]}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Decomposition(pipeline=2, microbatch=2), Decomposition(x=2)),
        (Decomposition(data=2, pipeline=2, x=2, microbatch=2), Decomposition(z=4)),
    ],
    ids=str,
)
@pytest.mark.slow
def test_a_run_goes_on_in_another_decomposition(tmp_path, serial_losses, before, after):
    Run(tmp_path, before, checkpoint={"every": 3}).complete()
    shutil.rmtree(tmp_path / "checkpoints" / "6")  # as if killed after step 3
    again = Run(tmp_path, after, checkpoint={"every": 3}).complete(attempt=2)
    assert again.losses() == pytest.approx(serial_losses + serial_losses[3:], rel=1e-5)
    kept = [(e.attempt, e.detail["step"]) for e in again.events() if e.kind == "checkpoint"]
    assert kept == [(1, 3), (1, 6), (2, 6)]


@pytest.mark.mpi
@pytest.mark.slow
def test_a_run_over_mpi_goes_on_from_the_last_sound_checkpoint(tmp_path, serial_losses):
    """The ranks agree about damage through the same door, whatever it is made of."""
    changes = {"communication": {"transport": "mpi"}, "checkpoint": {"every": 3}}
    run = Run(tmp_path, Decomposition(pipeline=2, microbatch=2), **changes)
    run.complete_mpi()
    (tmp_path / "checkpoints" / "6" / "rank-00001.safetensors").unlink()
    again = Run(tmp_path, Decomposition(data=2), **changes)
    again.complete_mpi()
    assert again.losses() == pytest.approx(serial_losses + serial_losses[3:], rel=1e-5)


def test_a_damaged_checkpoint_is_told_in_events_and_log(tmp_path):
    run = Run(tmp_path, Decomposition(data=2), checkpoint={"every": 3}).complete()
    shard = run.folder.checkpoints / "6" / "rank-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    run.complete(attempt=2)
    assert [record.step for record in run.steps()] == [1, 2, 3, 4, 5, 6, 4, 5, 6]
    (damaged,) = [event.detail for event in run.events() if event.kind == "checkpoint damaged"]
    assert (damaged["step"], damaged["file"]) == (6, shard.name)
    assert f"checkpoint 6 is passed over: {shard} has" in run.log(0, attempt=2)


def test_a_run_without_a_single_sound_checkpoint_does_not_start_again(tmp_path):
    run = Run(tmp_path, SERIAL, checkpoint={"every": 6}).complete()
    (run.folder.checkpoints / "6" / "manifest.json").unlink()
    assert finished(run.start(attempt=2)) == [1]
    assert "none of the 1 checkpoints" in run.exits(attempt=2)[0].reason
    assert f"move {run.folder.checkpoints} away" in run.log(0, attempt=2)


def test_the_rank_that_failed_first_is_named_by_the_earliest_record(tmp_path):
    """Rank 2 cannot write its metrics; the others end because it is gone, later and otherwise."""
    run = Run(tmp_path, Decomposition(data=2, x=2))
    run.folder.rank_metrics(2).mkdir(parents=True)
    assert finished(run.start()) == [1, 1, 1, 1]
    exits = run.exits()
    first = min(exits.values(), key=lambda record: record.time)
    assert (first.rank, first.exception) == (2, "IsADirectoryError")
    assert {record.exception for record in exits.values() if record.rank != 2} == {"PeerLostError"}
    assert "IsADirectoryError" in run.log(2)


@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["mixed", pytest.param("mpi", marks=pytest.mark.slow)])
def test_a_failing_stage_ends_every_mpi_rank_and_is_named(tmp_path, transport):
    """The last stage fails after step 1; the one in the middle waits for either neighbour's message."""
    model = {"model": MODEL | {"layers": 3}, "communication": {"transport": transport}}
    run = Run(tmp_path, Decomposition(pipeline=3), training=TRAINING | {"steps": 100_000}, **model)
    run.folder.rank_metrics(2).mkdir(parents=True)
    assert run.start_mpi().wait(timeout=200) != 0
    exits = run.exits()
    first = min(exits.values(), key=lambda record: record.time)
    assert (first.rank, first.exception) == (2, "IsADirectoryError")
    wait_until(lambda: not any_alive(run), seconds=10)


def any_alive(run):
    return subprocess.run(["pgrep", "-f", f"hpcdl.engine {run.folder.path}$"], check=False).returncode == 0


@pytest.mark.slow
def test_a_rank_that_is_stuck_is_given_up(tmp_path):
    """Rank 1 is there, but stopped: no connection breaks, so only time tells."""
    patience = {"communication": {"timeout_seconds": 8}}
    run = Run(tmp_path, Decomposition(data=2), training=TRAINING | {"steps": 100_000}, **patience)
    zero, one = run.start()
    wait_until(lambda: len(run.steps()) > 1)
    one.send_signal(signal.SIGSTOP)
    assert zero.wait(timeout=30) == 1
    one.kill()
    assert one.wait(timeout=20) == -signal.SIGKILL
    record = run.exits()[0]
    assert record.exception == "PeerLostError"
    assert "did not come in time" in record.reason
    assert "communication.timeout_seconds" in run.log(0)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (
            "[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 2000ms for recv",
            "did not come in time",
        ),
        # On a busy machine Gloo says this of the second operation that waits; the rank was then said to be guilty.
        ("Application timeout caused pair closure", "did not come in time"),
        ("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4", "went away"),
        (
            "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown",
            "went away",
        ),
        ("Broken pipe", "went away"),
        ("wait timeout after 300000ms, keys: /0//cpu//0/0", "did not come in time"),
    ],
)
def test_what_torch_says_of_a_peer_is_no_fault_of_the_rank_that_waits(said, meant):
    with pytest.raises(PeerLostError, match=meant), _blaming_the_lost():
        raise RuntimeError(said)


KILLED_STORE = """
import os, signal, sys
from datetime import timedelta
import torch
from torch.distributed import TCPStore
from hpcdl.engine.transport.dist import DistTransport
from hpcdl.errors import PeerLostError
rank = int(sys.argv[1])
store = TCPStore("127.0.0.1", int(sys.argv[2]), 2, rank == 0, timeout=timedelta(seconds=30))
door = DistTransport(store, (rank, 2), torch.device("cpu"), 30)
if rank == 1:
    store.set("up", "")
else:
    store.wait(["up"])
    os.kill(os.getpid(), signal.SIGKILL)
store.set_timeout(timedelta(seconds=3))
try:
    for number in range(3):
        door.group((0, 1), f"lane {number}")
except PeerLostError as error:
    print(error.message)
"""


def test_who_makes_groups_when_rank_0_is_killed_has_lost_a_peer(tmp_path):
    """It keeps the store, which the others found closed, and they said so as a failure of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    zero, one = (
        subprocess.Popen(
            [sys.executable, "-c", KILLED_STORE, str(rank), port], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    )
    assert one.communicate(timeout=200)[0].startswith("another rank ")
    assert one.returncode == 0
    zero.communicate(timeout=60)
    assert zero.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_rank_killed_by_the_system_leaves_no_hang(tmp_path):
    run = Run(tmp_path, Decomposition(pipeline=2, z=2), training=TRAINING | {"steps": 100_000})
    processes = run.start()
    wait_until(lambda: len(run.steps(1)) > 3)
    processes[1].send_signal(signal.SIGKILL)
    assert finished(processes) == [1, -signal.SIGKILL, 1, 1]
    assert {rank: record.exception for rank, record in run.exits().items()} == dict.fromkeys(
        (0, 2, 3), "PeerLostError"
    )


def test_sigterm_ends_a_rank_that_waits_in_a_collective(tmp_path):
    """Rank 1 is stopped, so rank 0 waits for it in an all-reduce; the signal still ends it."""
    run = Run(tmp_path, Decomposition(data=2), training=TRAINING | {"steps": 100_000})
    zero, one = run.start()
    wait_until(lambda: len(run.steps()) > 3)
    one.send_signal(signal.SIGSTOP)
    zero.send_signal(signal.SIGTERM)
    assert zero.wait(timeout=20) == 143
    one.send_signal(signal.SIGCONT)
    one.send_signal(signal.SIGTERM)  # as a launcher does: Gloo may miss that an idle peer has gone
    assert one.wait(timeout=60) in (1, 143)
    assert (run.exits()[0].signal, run.exits()[0].exit_code) == (signal.SIGTERM, 143)


def test_a_wrong_world_size_is_refused_with_both_numbers(tmp_path):
    run = Run(tmp_path, Decomposition(data=2))
    assert finished(run.start(ranks=[0], world_size=3)) == [1]
    record = run.exits()[0]
    assert record.exception == "EngineError"
    assert "2" in record.reason
    assert "3" in record.reason


@pytest.mark.mpi
def test_mpi_ranks_that_do_not_know_each_other_are_told_about_the_mpi_flag(tmp_path):
    """Two processes without mpiexec are two MPI worlds of one, as srun without --mpi= makes them."""
    run = Run(tmp_path, Decomposition(data=2), communication={"transport": "mpi"})
    assert finished(run.start()) == [1, 1]
    assert "MPI says rank 0 of 1" in run.exits()[1].reason
    assert "--mpi=" in run.log(1)


@pytest.mark.parametrize(
    "transport", ["dist", pytest.param("mpi", marks=[pytest.mark.mpi, pytest.mark.slow])]
)
def test_missing_ranks_are_named(tmp_path, transport):
    """MPI itself would wait for ever, so ranks meet before they start it."""
    run = Run(tmp_path, Decomposition(data=4), timeout=6, communication={"transport": transport})
    assert finished(run.start(ranks=[0, 2])) == [1, 1]
    assert "1, 3" in run.exits()[0].reason


def test_data_shorter_than_a_sequence_is_refused(tmp_path):
    run = Run(tmp_path, SERIAL)
    (tmp_path / "corpus.txt").write_text("short")
    assert finished(run.start()) == [1]
    assert run.exits()[0].exception == "EngineError"
    assert "corpus.txt" in run.exits()[0].reason


def test_a_resolved_file_that_is_no_run_is_refused(tmp_path):
    run = Run(tmp_path, SERIAL)
    run.folder.resolved.write_text(json.dumps({"format": 1}))
    assert finished(run.start()) == [1]
    assert "resolved.json" in run.exits()[0].reason


def test_a_loss_that_is_not_finite_stops_the_run_by_name(tmp_path):
    """A learning rate of 1e30 sends the weights to infinity.

    Both ranks said so as of themselves, and the one with the earlier clock was blamed, beside the other's name.
    """
    wild = TRAINING | {"optimizer": {"lr": 1e30, "weight_decay": 0, "clip": 0}}
    run = Run(tmp_path, Decomposition(pipeline=2), training=wild)
    assert finished(run.start()) == [1, 1]
    words = "the loss became nan in step 2, on rank 1"
    told = {rank: (record.exception, record.reason) for rank, record in run.exits().items()}
    assert told == {0: ("PeerLostError", words), 1: ("EngineError", words)}
    assert first_failure(store.evidence(run.folder, 1, 2)).rank == 1
    assert len(run.steps()) == 1


def test_a_run_folder_that_cannot_be_written_ends_with_an_error(tmp_path):
    """A file where checkpoints should go: the run fails before its first step, not silently after many."""
    run = Run(tmp_path, SERIAL, checkpoint={"every": 2})
    run.folder.checkpoints.write_text("")
    assert finished(run.start()) == [1]
    assert os.fspath(run.folder.checkpoints) in run.exits()[0].reason
    assert run.steps() == []
