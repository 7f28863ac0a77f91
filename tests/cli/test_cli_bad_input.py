"""Every bad input gets a message that names the value, where it stands and the way out, and its exit code."""

import os

import pytest


def change(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("training:", "trainng:", "unknown key 'trainng'; did you mean 'training'?"),
        ("steps: 6", "stpes: 6", "unknown key 'training.stpes'; did you mean 'steps'?"),
        ("global_batch: 8", "global_batch: -8", "training.global_batch is -8"),
        ("heads: 4", "heads: 5", "hidden 32 is not divisible by heads 5"),
        ("heads: 4", "heads: -4", "model.heads is -4"),
        ("layers: 2", "layers: 0", "model.layers is 0"),
        ('"00:05:00"', "1h", "'1h' is not a walltime"),
        ("vocab: 256", "vocab: 100", "needs a vocab of at least 256"),
        ("gpus: 2", "gpus: two", "resources.gpus is 'two'"),
        ("name: tiny", "name: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(hpcdl, tiny, old, new, expected):
    change(tiny, old, new)
    result = hpcdl("plan", tiny)
    assert result.code == 2
    assert expected in result.err
    assert f"{tiny}:" in result.err


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("resources.exclude=n7", "resources.exclude is 'n7', but must be a list, written [a, b]"),
        ("chain=null", "chain is null, but must be a mapping (key: value lines)"),
        ("checkpoint.before_limit_seconds=300", "told 300 s before the walltime of 00:05:00 ends"),
        ("environment.HF_TOKEN=x", "--set environment.HF_TOKEN=x: environment: HF_TOKEN looks like a secret"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_file(hpcdl, tiny, setting, expected):
    """Not in pydantic's: "must be a valid tuple", "environment.[key]", "is None"."""
    result = hpcdl("plan", tiny, "--set", setting)
    assert result.code == 2
    assert expected in " ".join(result.err.split())


def test_a_sweep_over_no_values_is_told_so(hpcdl, tiny):
    tiny.write_text(tiny.read_text() + "sweep: {grid: {training.seed: []}}\n")
    result = hpcdl("submit", tiny, "--dry-run")
    assert result.code == 2
    assert "must have at least 1 item" in result.err
    assert "validation" not in result.err


def test_weights_that_are_not_there_are_refused_before_the_queue(hpcdl, tiny):
    result = hpcdl("submit", tiny, "--dry-run", "--set", "checkpoint.start=nowhere")
    assert result.code == 2
    assert f"checkpoint.start {tiny.parent}/nowhere does not exist" in result.err


def test_a_missing_file_is_named(hpcdl, tmp_path):
    result = hpcdl("plan", tmp_path / "none.yaml")
    assert result.code == 2
    assert "none.yaml" in result.err


def test_a_setting_that_is_wrong_names_the_flag(hpcdl, tiny):
    result = hpcdl("plan", tiny, "--set", "training.steps=many")
    assert result.code == 2
    assert "--set training.steps=many" in result.err


def test_a_batch_that_does_not_divide_names_all_factors(hpcdl, tiny):
    result = hpcdl("submit", tiny, "--set", "training.global_batch=9")
    assert result.code == 3
    assert "global_batch 9 is not divisible by data 2 × z 1" in result.err


def test_a_product_that_is_not_the_gpu_count_names_all_factors(hpcdl, tiny):
    result = hpcdl("plan", tiny, "--gpus", "3")
    assert result.code == 3
    assert "data 2" in result.err
    assert "3" in result.err


def test_a_gpu_count_nothing_fits_says_so(hpcdl, tiny):
    result = hpcdl("plan", tiny, "--gpus", "7", "--set", "parallelism=auto")
    assert result.code == 3
    assert "7" in result.err


def test_missing_data_is_found_before_anything_is_submitted(hpcdl, tiny, tmp_path):
    (tmp_path / "corpus.txt").unlink()
    result = hpcdl("submit", tiny)
    assert result.code == 2
    assert str(tmp_path / "corpus.txt") in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "key", "missing"),
    [
        (
            "data={sources: [{path: corpus.txt}, {source: tokens, path: shards}]}",
            "data.sources.1.path",
            "shards",
        ),
        ("data.tokenizer=tokenizer.json", "data.tokenizer", "tokenizer.json"),
        (f"data.path={'x' * 5000}", "data.path", "x" * 5000),
    ],
)
def test_every_path_of_the_data_is_looked_for(hpcdl, tiny, tmp_path, setting, key, missing):
    result = hpcdl("submit", tiny, "--set", setting)
    assert result.code == 2
    assert f"{key} {tmp_path / missing} does not exist" in result.err


def test_an_unknown_site_names_the_closest(hpcdl, tiny):
    result = hpcdl("plan", tiny, "--site", "perlmuter")
    assert result.code == 2
    assert "perlmutter" in result.err


def test_a_runs_folder_that_cannot_be_written_is_named(hpcdl, tiny, tmp_path):
    (tmp_path / "taken").write_text("")
    result = hpcdl("submit", tiny, "--runs", tmp_path / "taken" / "runs")
    assert result.code == 2
    assert str(tmp_path / "taken") in result.err


def test_a_preparation_that_fails_leaves_no_folder_behind(hpcdl, tiny, tmp_path):
    """Slurm would rewrite the % in the path of the log, so such a folder is refused."""
    runs = tmp_path / "100%j"
    result = hpcdl("submit", tiny, "--site", "generic-slurm", "--runs", runs)
    assert result.code == 2
    assert "%j" in result.err
    assert list(runs.iterdir()) == []


def test_a_run_that_does_not_exist_is_named(hpcdl, tiny):
    result = hpcdl("status", "nothing")
    assert result.code == 2
    assert "no runs in" in result.err


def test_sbatch_that_is_missing_is_named(hpcdl, tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = hpcdl("submit", tiny, "--site", "generic-slurm", "--set", "resources.account=a")
    assert result.code == 4
    assert "sbatch" in result.err


def test_sbatch_that_refuses_is_quoted(hpcdl, tiny, monkeypatch, tmp_path):
    """A real program that answers as a real sbatch did."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    result = hpcdl("submit", tiny, "--site", "generic-slurm", "--set", "resources.account=a")
    assert result.code == 4
    assert "invalid partition specified: gpu" in result.err
    assert "refused" in hpcdl("list").out


def test_list_without_the_scheduler_shows_states_as_last_seen(hpcdl, tiny, monkeypatch, tmp_path):
    """Runs of a cluster stay listed on a machine that has no Slurm."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text("#!/bin/sh\necho 77\n")
    (tools / "sbatch").chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    assert hpcdl("submit", tiny, "--site", "generic-slurm").code == 0
    monkeypatch.setenv("PATH", str(tmp_path))
    result = hpcdl("list")
    assert result.code == 0
    assert "queued" in result.out
    assert "squeue" in result.err
    monkeypatch.setenv("PATH", path)


def test_a_secret_in_the_environment_is_refused(hpcdl, tiny):
    result = hpcdl("plan", tiny, "--set", "environment.WANDB_API_KEY=abc123")
    assert result.code == 2
    assert "WANDB_API_KEY looks like a secret" in result.err
