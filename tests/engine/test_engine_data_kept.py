"""What a run began with it is trained on to the end, whatever becomes of the sources between attempts."""

import os
import shutil

import numpy as np
import pytest
import torch
from engine_runs import SERIAL, TRAINING, Run
from engine_worlds import in_threads
from quick import first_of

from hpcdl.engine.data.loader import Share
from hpcdl.engine.data.reading import Reading
from hpcdl.engine.metrics import Recorder
from hpcdl.engine.ranks import Place
from hpcdl.engine.timeline import Timeline
from hpcdl.engine.train import Training
from hpcdl.engine.transport.observed import Observed
from hpcdl.errors import EngineError
from hpcdl.spec.experiment import Experiment

HALF = TRAINING["steps"] // 2


def attempt(run, number):
    """One attempt of a run of one rank, in this process; the losses that it records."""
    before = len(run.steps())

    def work(transport):
        recorder = Recorder(run.folder, number, place := Place(0, 0, 1, "here"))
        door = Observed(transport, Timeline())
        Training(run.resolved, run.folder, door, recorder, torch.device("cpu")).run(place)

    in_threads(1, work)
    return run.losses()[before:]


def one_more_file(texts, _):
    (texts / "a-first.txt").write_text("a file that comes before all the others. " * 50)


def touched(texts, _):
    os.utime(texts / "1.txt", (1, 1))


def text_gone(texts, _):
    """A quota asks for it, and the tokens lie in the run folder."""
    shutil.rmtree(texts)


def more_tokens_beside(_, shards):
    np.save(shards / "0.npy", np.arange(400, dtype=np.uint16) % 256)


def longer(shards):
    np.save(shards / "1.npy", np.arange(900, dtype=np.uint16) % 256)


def narrower(shards):
    np.save(shards / "1.npy", np.arange(600, dtype=np.uint8))


def gone(shards):
    (shards / "1.npy").unlink()


@pytest.fixture
def mixed(tmp_path):
    """Two folders, of texts and of token files, and how a run takes from both."""
    texts, shards = tmp_path / "texts", tmp_path / "shards"
    texts.mkdir()
    shards.mkdir()
    for index in range(1, 4):
        (texts / f"{index}.txt").write_text(f"the quick brown fox {index} jumps over the dog. " * 40)
    np.save(shards / "1.npy", np.arange(600, dtype=np.uint16) % 256)
    sources = [{"path": str(texts)}, {"source": "tokens", "path": str(shards)}]
    return texts, shards, {"data": {"sources": sources}, "checkpoint": {"every": HALF}}


def interrupted(path, changes):
    """A run whose first attempt was killed after its first checkpoint."""
    run = Run(path, SERIAL, **changes)
    whole = attempt(run, 1)
    shutil.rmtree(run.folder.checkpoints / str(TRAINING["steps"]))
    return run, whole


@pytest.mark.parametrize("change", first_of(one_more_file, touched, text_gone, more_tokens_beside))
def test_a_resumed_run_goes_on_with_the_data_it_began_with(tmp_path, mixed, change):
    """One file added to the folder changed every permutation, and nobody was told; here it is the same curve."""
    texts, shards, changes = mixed
    run, whole = interrupted(tmp_path / "run", changes)
    change(texts, shards)
    assert attempt(run, 2) == whole[HALF:]
    assert len([path for path in run.folder.data.iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("change", first_of(longer, narrower, gone))
def test_token_files_that_are_others_than_at_the_beginning_are_refused(tmp_path, mixed, change):
    """They are read where they are: there is no copy to go on with."""
    _, shards, changes = mixed
    run, _ = interrupted(tmp_path / "run", changes)
    change(shards)
    with pytest.raises(EngineError, match=r"are not those the run began with: .*/shards/1\.npy") as refused:
        attempt(run, 2)
    assert "bring the file back" in refused.value.hint


def first_batch(folder, experiment):
    """What rank 0 reads of the first step."""
    reading = Reading(experiment, folder, first=True)
    return reading.batches(lambda number: number, Share()).rows(1).inputs_BL


def test_prepared_data_that_are_gone_are_made_anew_and_that_is_said(tmp_path, capsys):
    run = Run(tmp_path, SERIAL)
    first_batch(run.folder.data, run.resolved.experiment)
    (kept,) = (path for path in run.folder.data.iterdir() if path.is_dir())
    shutil.rmtree(kept)
    os.utime(tmp_path / "corpus.txt", (1, 1))
    first_batch(run.folder.data, run.resolved.experiment)
    assert f"warning: {kept} is gone; the data are prepared anew" in capsys.readouterr().out


def test_data_that_nothing_could_be_trained_on_may_be_mended(tmp_path):
    """The run has begun with nothing yet: what the error asks for must help."""
    run = Run(tmp_path, SERIAL)
    told = run.resolved.experiment.model_dump(mode="json")
    told["data"]["validation"] = 0.5
    (tmp_path / "corpus.txt").write_text("x" * 40)
    with pytest.raises(EngineError, match="holds all of them out"):
        first_batch(run.folder.data, Experiment.model_validate(told))
    (tmp_path / "corpus.txt").write_text("more of it " * 40)
    assert len(first_batch(run.folder.data, Experiment.model_validate(told)))
