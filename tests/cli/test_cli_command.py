"""The command line on an experiment that brings its own engine, before anything runs."""

import json
import shlex
import subprocess

import pytest

from hpcdl.workflow.studies import preparing, repeating, studying

OWN = """\
command: [python, train.py, --name, "it's $(touch pwned)"]
resources: {gpus: 4, walltime: "00:05:00"}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An experiment file whose program nobody starts."""
    monkeypatch.setenv("HPCDL_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("HPCDL_SITE", raising=False)
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize(
    "flags", [(), ("--gpus", "2,4"), ("--what-if", "link.inter=2x"), ("--explain", "1"), ("--json",)]
)
def test_plan_says_that_it_knows_nothing_of_it(hpcdl, own, flags):
    result = hpcdl("plan", own, *flags)
    assert (result.code, result.out) == (2, "")
    assert "nothing of python train.py --name" in result.err
    assert "submit it: it would be started on" in result.err


def test_a_dry_run_shows_the_script_that_would_start_it_once_a_rank(hpcdl, own, tmp_path):
    result = hpcdl("submit", own, "--dry-run", "--site", "generic-slurm", "--nodes", "2")
    assert result.code == 0, result.err
    assert "--ntasks=8" in result.out
    assert "-m hpcdl.engine" in result.out
    assert "--signal" not in result.out  # nobody said what the program takes it for
    assert subprocess.run(["bash", "-n"], input=result.out, text=True, check=False).returncode == 0
    assert not (tmp_path / "runs").exists()


def test_the_signal_that_a_program_takes_is_asked_for_in_time_and_says_who_asked(hpcdl, own):
    own.write_text("command:\n  run: [a]\n  warning: {signal: USR1, seconds: 90}\n")
    asked = ("submit", own, "--dry-run", "--site", "generic-slurm")
    assert "--signal=B:USR1@90" in hpcdl(*asked).out
    explained = hpcdl(*asked, "--explain").out.splitlines()
    origin = explained[explained.index("#SBATCH --signal=B:USR1@90") + 1]
    assert origin.strip() == f"spec command.warning, {own}:3:12"


def test_repetitions_differ_in_the_seed_that_the_program_is_told(own):
    study = studying.study(studying.Request(own, settings=("command={run: [a], seed: 40}",)))
    runs = [preparing.resolve(repeating.seeded(study, index), "r") for index in range(3)]
    assert [run.experiment.command.seed for run in runs] == [40, 41, 42]


def test_a_folder_that_is_not_there_is_refused_before_the_queue(hpcdl, own, tmp_path):
    own.write_text("command: {run: [python, train.py], folder: gone}\n")
    result = hpcdl("submit", own)
    assert result.code == 2
    assert f"command.folder {tmp_path / 'gone'} does not exist" in result.err


def test_keys_of_the_bundled_engine_are_refused_with_their_place(hpcdl, own):
    result = hpcdl("submit", own, "--dry-run", "--set", "training.steps=3")
    assert result.code == 2
    assert "--set training.steps=3: training is for the bundled engine" in result.err


def test_the_schema_for_editors_has_both_forms(hpcdl):
    schema = json.loads(hpcdl("schema", "experiment").out)
    assert {"Experiment", "CommandExperiment"} <= schema["$defs"].keys()


def test_a_tile_is_no_hindrance_for_a_program_of_ones_own(hpcdl, own, tmp_path):
    """The bundled engine does not run on them; somebody else's may."""
    shown = hpcdl("site", "show", "generic-slurm").out
    tiles = tmp_path / "tiles.yaml"
    tiles.write_text(shown.replace("kind: gpu", "kind: tile"))
    assert hpcdl("submit", own, "--dry-run", "--site", tiles, "--gpus", "1").code == 0


def test_what_is_shown_of_a_command_is_what_a_shell_would_take(hpcdl, own):
    shown = hpcdl("plan", own).err.splitlines()[0].partition("nothing of ")[2]
    assert shlex.split(shown) == ["python", "train.py", "--name", "it's $(touch pwned)"]
