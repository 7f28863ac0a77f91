"""Use cases at their edges, with programs that answer as schedulers do."""

import os
import time
from pathlib import Path

import pytest

from hpcdl.runs import store
from hpcdl.runs.record import RunState
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.states import following
from hpcdl.workflow.states.asking import Outside
from hpcdl.workflow.studies import preparing, studying

TINY = Path(__file__).parent / "tiny.yaml"


class HastyClock:
    """A clock on which a second passes each time one looks."""

    def __init__(self):
        self.time = time.time()

    def __call__(self):
        self.time += 1
        return self.time


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """A run that a Slurm accepted which then went away: there is an sbatch here and nothing else."""
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    spec = tmp_path / "tiny.yaml"
    spec.write_text(TINY.read_text())
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 77\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(sbatch.parent))
    study = studying.study(studying.Request(spec, "generic-slurm"))
    (folder,) = preparing.prepare(study, tmp_path / "runs")
    assert submitting.submit([folder]) == ["77"]
    return folder


def test_watching_goes_on_while_the_scheduler_is_away(submitted):
    """slurmctld may be down for a minute; the script's own record says when the run is over."""
    watched = following.watch(submitted, interval_s=0.01, outside=Outside(now=HastyClock()))
    assert next(watched).attempt.state is RunState.QUEUED
    assert next(watched).attempt.state is RunState.QUEUED
    submitted.job_exit(1).write_text('{"exit_code": 0}\n')
    *_, last = watched
    assert last.attempt.state is RunState.COMPLETED
    assert store.current(submitted).state is RunState.COMPLETED


def test_watching_asks_no_more_often_than_the_site_allows(submitted, monkeypatch):
    """Administrators bar users whose tools hammer the controller."""
    asked = submitted.path.parent / "asked"
    squeue = Path(os.environ["PATH"]) / "squeue"
    squeue.write_text(f"#!/bin/sh\necho >>{asked}\necho '77|RUNNING|0|None'\n")
    squeue.chmod(0o755)
    watched = following.watch(submitted, interval_s=0.001)
    states = [next(watched).attempt.state for _ in range(30)]
    assert set(states) == {RunState.RUNNING}
    assert len(asked.read_text()) == 1


def test_a_size_on_the_command_line_replaces_the_files(tmp_path):
    """--nodes means whole nodes even where the file counts GPUs."""
    (tmp_path / "tiny.yaml").write_text(TINY.read_text())
    file = tmp_path / "tiny.yaml"
    layouts = [
        studying.study(
            studying.Request(file, "generic-slurm", ("parallelism=auto", *batch), gpus, nodes)
        ).layout
        for gpus, nodes, batch in (
            (None, None, ()),
            (4, None, ()),
            (None, 2, ()),
            (4, 2, ()),
        )
    ]
    assert [(each.nodes, each.ranks_per_node) for each in layouts] == [(1, 2), (1, 4), (2, 4), (2, 2)]
