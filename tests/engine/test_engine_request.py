"""A run that is asked to stop saves itself at one step on all ranks, and goes on from there as if nothing was."""

import pytest
from engine_runs import TRAINING, Run, finished

from hpcdl.engine.request import Request
from hpcdl.spec.decomposition import Decomposition
from hpcdl.telemetry import RunEvent, read

MANY = {**TRAINING, "steps": 60}


def events(run, kind):
    return [event for event in read(run.folder.engine_events, RunEvent) if event.kind == kind]


def ask(run, attempt=1):
    run.folder.request(attempt).parent.mkdir(exist_ok=True)
    run.folder.request(attempt).write_text("the walltime is nearly over\n")


@pytest.mark.parametrize(
    "decomposition",
    [Decomposition(data=2), pytest.param(Decomposition(pipeline=2, microbatch=2), marks=pytest.mark.slow)],
    ids=str,
)
def test_run_that_is_asked_stops_saved_and_goes_on_to_the_same_losses(tmp_path, decomposition):
    whole = Run(tmp_path / "whole", decomposition, training=MANY).complete()
    run = Run(tmp_path / "run", decomposition, training=MANY)
    ask(run)
    assert finished(run.start()) == [0, 0], run.log(0)
    (paused,) = events(run, "paused")
    step = paused.detail["step"]
    assert 1 <= step < 60
    assert [int(folder.name) for folder in run.folder.checkpoints.iterdir()] == [step]
    assert not events(run, "finished")
    run.complete(attempt=2)
    assert run.losses() == whole.losses()
    assert events(run, "finished")[0].detail["step"] == 60


def test_request_that_comes_with_the_last_step_changes_nothing(tmp_path):
    run = Run(tmp_path, Decomposition(data=2), training={**TRAINING, "steps": 1})
    ask(run)
    run.complete()
    assert events(run, "finished")
    assert not events(run, "paused")
    assert not run.folder.checkpoints.exists()


def test_empty_or_missing_file_asks_for_nothing(tmp_path):
    now = [0.0]
    request = Request(tmp_path / "request", lambda: now[0])
    assert not request.made()
    (tmp_path / "request").touch()
    now[0] += 1
    assert not request.made()


def test_file_is_opened_once_a_second_at_most(tmp_path):
    now = [0.0]
    file = tmp_path / "request"
    request = Request(file, lambda: now[0])
    assert not request.made()
    file.write_text("stop\n")
    now[0] = 0.9
    assert not request.made()
    now[0] = 1.0
    assert request.made()
    file.unlink()
    now[0] = 9.0
    assert request.made()  # what was asked once stays asked


def test_rank_without_a_file_never_asks():
    assert not Request(None).made()
