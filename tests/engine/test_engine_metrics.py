"""What a rank records can be read back, line by line, while it is still running."""

from dataclasses import replace

import pytest
import torch
from engine_runs import Run

from hpcdl.engine.metrics import Meter, Recorder, memory_peak
from hpcdl.engine.ranks import Place
from hpcdl.run_folder import RunFolder
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model
from hpcdl.telemetry import RunEvent, StepRecord, parse, read

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
    assert line.endswith("step 7 loss 2.5000 grad norm 1.250 lr 3.00e-04 2.05k tokens/s")


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


MODEL = Model(family="gpt", layers=2, hidden=32, heads=4, vocab=256, sequence=16)


def meter(tmp_path, peak, **axes):
    run = Run(tmp_path, Decomposition(**axes), model=MODEL).resolved
    return Meter(run.model_copy(update={"peak_flops": peak}), torch.device("cpu"))


def test_utilisation_counts_the_models_flops_and_those_computed_again_apart(tmp_path):
    """Eight sequences on two ranks in half a second: eight a second and rank."""
    record = meter(tmp_path, 1e9, data=2, recompute="full").complete(STEP, {})
    assert record.flops_per_second == 8 * MODEL.train_flops
    assert record.mfu == pytest.approx(8 * MODEL.train_flops / 1e9)
    recomputed = MODEL.layers * MODEL.layer_forward_flops
    assert record.hfu == pytest.approx(8 * (MODEL.train_flops + recomputed) / 1e9)
    assert (record.loss, record.step_seconds) == (STEP.loss, STEP.step_seconds)


def test_without_a_known_peak_there_is_a_rate_and_no_share_of_it(tmp_path):
    record = meter(tmp_path, None).complete(STEP, {})
    assert record.flops_per_second > 0
    assert (record.mfu, record.hfu) == (None, None)


def test_the_seconds_of_a_step_are_split_without_rest(tmp_path):
    record = meter(tmp_path, None).complete(STEP, {"compute": 0.3, "all_reduce": 0.05, "phase": 0.1})
    assert record.seconds["compute"] == 0.3
    assert record.seconds["all_reduce"] == 0.05
    assert record.seconds["idle"] == 0.0
    assert record.seconds["other"] == pytest.approx(0.15)


def test_memory_peak_grows_with_what_is_resident():
    before = memory_peak(torch.device("cpu"))
    ballast = bytearray(b"x") * (before + 2**24)
    del ballast
    assert memory_peak(torch.device("cpu")) > before + 2**23


def test_a_record_from_before_there_were_accounts_is_still_read():
    (record,) = parse(
        b'{"step": 1, "loss": 2.0, "tokens": 3, "step_seconds": 1, "tokens_per_second": 3}\n', StepRecord
    )
    assert (record.mfu, record.seconds) == (None, {})
