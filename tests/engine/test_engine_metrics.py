"""What a rank records can be read back, line by line, while it is still running."""

from dataclasses import replace

import pytest

from hpcdl.engine.metrics import Recorder
from hpcdl.engine.ranks import Place
from hpcdl.run_folder import RunFolder
from hpcdl.telemetry import RunEvent, StepRecord, read

STEP = StepRecord(
    7, 2.5, tokens=1024, step_seconds=0.5, tokens_per_second=2048.0, grad_norm=1.25, learning_rate=3e-4
)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def recorder(folder, rank):
    return Recorder(folder, 2, Place(rank, rank, 2, "n0"))


def test_steps_of_each_rank_go_to_its_own_file(folder, capsys):
    for rank in (0, 1):
        recorder(folder, rank).step(STEP)
        assert read(folder.rank_metrics(rank), StepRecord) == [STEP]
    line = capsys.readouterr().out.splitlines()[0]
    assert line.endswith("step 7 loss 2.5000 grad norm 1.250 lr 3.00e-04 2048 tokens/s")


def test_an_evaluation_is_told_in_the_line_and_the_record_of_its_step(folder, capsys):
    recorder(folder, 0).step(replace(STEP, validation_loss=2.75))
    (record,) = read(folder.rank_metrics(0), StepRecord)
    assert record.validation_loss == 2.75
    assert capsys.readouterr().out.rstrip().endswith("tokens/s validation loss 2.7500")


def test_a_restarted_rank_goes_on_in_the_same_file(folder):
    recorder(folder, 0).step(STEP)
    recorder(folder, 0).step(STEP)
    assert read(folder.rank_metrics(0), StepRecord) == [STEP, STEP]


def test_events_are_told_by_rank_0_alone(folder):
    for rank in (0, 1):
        recorder(folder, rank).event("checkpoint", step=5)
    (event,) = read(folder.engine_events, RunEvent)
    assert (event.kind, event.attempt, event.detail) == ("checkpoint", 2, {"step": 5})
