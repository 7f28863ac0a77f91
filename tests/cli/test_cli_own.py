"""The command line on a model of the user's own."""

import pytest

from hpcdl.workflow.studies import studying

OWN = """\
model: {entry: "somewhere:program", folder: code}
training: {global_batch: 8, steps: 5}
resources: {gpus: 4, walltime: "00:05:00"}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An experiment file whose function nobody calls before the job runs."""
    monkeypatch.setenv("HPCDL_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("HPCDL_SITE", raising=False)
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    return path


def test_plan_says_why_not_and_what_would_run(hpcdl, own):
    result = hpcdl("plan", own)
    assert result.code == 2
    assert "nothing of a model of your own (model.entry)" in result.err
    assert "submit it: it would run data 4" in result.err


def test_auto_is_one_replica_a_device_and_its_share_one_microbatch(own):
    study = studying.study(studying.Request(own))
    assert (study.decomposition.data, study.decomposition.ranks) == (4, 4)
    assert study.decomposition.microbatch == 2
    assert study.experiment.model.folder == str(own.parent / "code")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "parallelism={x: 2, data: 2}",
            "x 2 × y 1 × z 1: a model of your own is spread over data and pipeline",
        ),
        ("parallelism={data: 2}", "makes 2 ranks, but the job has 4 devices"),
        ("training.global_batch=6", "global_batch 6 is not divisible by data 4"),
    ],
)
def test_what_cannot_run_is_refused_before_the_queue(hpcdl, own, setting, words):
    result = hpcdl("submit", own, "--dry-run", "--set", setting)
    assert result.code == 3
    assert words in result.err
    assert "parallelism: " in result.err


def test_a_malformed_entry_is_told_with_its_place(hpcdl, own):
    own.write_text(OWN.replace("somewhere:program", "somewhere.py"))
    result = hpcdl("plan", own)
    assert result.code == 2
    assert f"{own}:1:16: model.entry is 'somewhere.py'" in result.err
