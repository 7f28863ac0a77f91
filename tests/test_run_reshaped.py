"""Runs that really go on in other shapes: the curve is that of a run that was never stopped."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest

from hpcdl.runs import metrics, shapes, store
from hpcdl.runs.record import RunState
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.states import following
from hpcdl.workflow.studies import preparing, studying
from hpcdl.workflow.studies.reshaping import Change, reshaped

TINY = Path(__file__).parent / "tiny.yaml"
LONG = ("training.steps=12", "training.optimizer.warmup=4", "checkpoint.every=4", "chain.attempts=1")


@pytest.fixture
def prepare(tmp_path):
    """Prepare the small experiment, changed; its cosine and warm-up would show a step that was lost."""
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY.read_text())

    def call(*settings):
        study = studying.study(studying.Request(file, settings=(*LONG, *settings)))
        return preparing.prepare(study, tmp_path / "runs")[0]

    return call


def end_of(folder, seconds=120):
    deadline = time.monotonic() + seconds
    while not (attempt := following.refresh([folder])[0]).state.over:
        assert time.monotonic() < deadline, f"{folder.path.name} is still {attempt.state.value}"
        time.sleep(0.1)
    return attempt


def stop_early(folder):
    """Ask the newest attempt to stop; rank 0 looks before its first step, which torch takes seconds to reach."""
    folder.request(store.current(folder).number).write_text("stop\n")


def trained(folder):
    submitting.submit([folder])
    attempt = end_of(folder)
    assert attempt.state is RunState.COMPLETED, attempt.reason
    return folder


def carried(folder, shapes: Sequence[Change]):
    """Train, pausing after each attempt but the last; ``shapes``: of the second and further attempts."""
    folder.request(1).write_text("stop\n")
    submitting.submit([folder])
    for shape in shapes:
        paused = end_of(folder)
        assert paused.state is RunState.PAUSED, paused.reason
        submitting.resume(folder, reshaped(folder, shape) if shape else None)
        if shape is not shapes[-1]:
            stop_early(folder)
    ended = end_of(folder)
    assert ended.state is RunState.COMPLETED, ended.reason
    return folder


def losses(folder, rank=0):
    return [record.loss for record in metrics.steps(folder, rank)]


def to(gpus, **degrees):
    given = {"microbatch": 1, **degrees}
    return Change((f"parallelism={json.dumps(given)}",), gpus)


@pytest.mark.slow
def test_the_same_shape_goes_on_bitwise_and_another_to_rounding(prepare):
    whole = losses(trained(prepare()))
    assert losses(carried(prepare(), [Change()])) == whole
    other = carried(prepare(), [to(4, pipeline=2, x=2)])
    assert losses(other) == pytest.approx(whole, rel=1e-5)
    since = shapes.since(store.events(other))
    fresh = [record.step_seconds for record in metrics.steps(other) if record.attempt >= since]
    assert metrics.progress(metrics.steps(other), since).step_seconds == median(fresh[1:])
    assert len(fresh) == 11
    assert [len(losses(other, rank)) for rank in range(4)] == [12, 12, 11, 11]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "shapes"),
    [
        ((), [to(4, data=2, y=2), to(1)]),
        (("parallelism={pipeline: 2}",), [to(4, pipeline=2, z=2), to(2, x=2, zero=0)]),
        (
            ("parallelism={data: 2, zero: 1}",),
            [to(4, data=4, zero=1, offload="optimizer"), to(2, pipeline=2), to(4, data=2, x=2, zero=1)],
        ),
        (("parallelism=auto",), [Change(gpus=4), Change(gpus=1)]),
        (
            ("training.pruning={sparsity: 0.5, begin: 0}",),
            [to(4, data=2, pipeline=2), to(1)],
        ),
    ],
    ids=["data, tensor", "pipeline, tensor", "zero, offload", "auto", "pruned"],
)
def test_a_curve_is_the_same_through_any_shapes(prepare, start, shapes):
    whole = losses(trained(prepare(*start)))
    folder = carried(prepare(*start), shapes)
    assert losses(folder) == pytest.approx(whole, rel=1e-5)
    ranks = [store.resolved(folder, number).layout.ranks for number in range(1, len(shapes) + 2)]
    assert ranks == [2, *(shape.gpus for shape in shapes)]
    assert len({str(store.resolved(folder, number).decomposition) for number in range(1, len(ranks) + 1)}) > 1
