"""What TensorBoard reads back is what was recorded."""

from dataclasses import replace

import pytest
from engine_runs import TRAINING, Run

from hpcdl.engine.board import Board, curves
from hpcdl.engine.train import refuse_impossible
from hpcdl.errors import EngineError
from hpcdl.spec.decomposition import Decomposition
from hpcdl.telemetry import StepRecord

STEP = StepRecord(1, 2.5, 64, 0.5, 128.0, grad_norm=1.0, learning_rate=1e-3, time=9.0, seconds={"idle": 0.25})


def read_back(folder):
    """Points by curve: (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    events = EventAccumulator(str(folder)).Reload()
    return {
        name: [(point.step, point.value) for point in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_every_known_number_of_a_record_is_a_curve():
    assert dict(curves(STEP)) == {
        "loss": 2.5,
        "step_seconds": 0.5,
        "tokens_per_second": 128.0,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "seconds/idle": 0.25,
    }
    assert dict(curves(replace(STEP, mfu=0.5)))["mfu"] == 0.5


def test_steps_that_a_restart_repeats_are_read_as_they_ran_last(tmp_path):
    for losses in ({1: 5.0, 2: 4.0, 3: 3.0}, {2: 4.5, 3: 3.5, 4: 2.5}):
        board = Board(tmp_path)
        for step, loss in losses.items():
            board.step(replace(STEP, step=step, loss=loss))
    assert read_back(tmp_path)["loss"] == [(1, 5.0), (2, 4.5), (3, 3.5), (4, 2.5)]


def test_a_run_that_asks_for_tensorboard_leaves_its_curves(tmp_path):
    training = TRAINING | {"steps": 3}
    run = Run(tmp_path, Decomposition(data=2), training=training, metrics={"tensorboard": True}).complete()
    found = read_back(run.folder.tensorboard)
    assert [step for step, _ in found["loss"]] == [1, 2, 3]
    assert [loss for _, loss in found["loss"]] == pytest.approx(run.losses())
    assert {
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "memory_peak",
        "seconds/compute",
    } <= found.keys()
    assert len(list(run.folder.tensorboard.iterdir())) == 1, "rank 0 alone writes"


def test_without_the_package_the_run_is_refused_with_the_extra_by_name(tmp_path, monkeypatch):
    asked = Run(tmp_path, Decomposition(), metrics={"tensorboard": True}).resolved
    refuse_impossible(asked)
    monkeypatch.setattr("hpcdl.engine.board.find_spec", lambda name: None)
    with pytest.raises(EngineError) as refused:
        refuse_impossible(asked)
    assert "metrics.tensorboard" in refused.value.message
    assert "hpcdl[tensorboard]" in refused.value.hint
