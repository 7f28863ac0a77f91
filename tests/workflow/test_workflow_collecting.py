"""What an archive holds of the scheduler's own words, and of the files of the site."""

import tarfile
from pathlib import Path

import pytest
from workflow.sweeps import small_site

from hpcdl import shell
from hpcdl.errors import NoAnswerError
from hpcdl.runs import store
from hpcdl.workflow import collecting
from hpcdl.workflow.studies import preparing
from hpcdl.workflow.studies.reshaping import Change, reshaped, rewrite


@pytest.fixture
def run(terminal):
    """A run of three attempts, of which the second is of another cluster; Slurm notes how it is called."""
    (folder,) = preparing.prepare(terminal.study(), terminal.runs)
    for number, job_id in enumerate(("70", "71;far", "72"), start=1):
        store.note(folder, "submitted", number, job_id=job_id)
    for program in ("squeue", "sacct"):
        terminal.answer(
            program, f'echo "{program} $*" >>{terminal.folder}/asked; echo the words of {program}'
        )
    return folder


def scheduler_words(run, tmp_path):
    target = tmp_path / "r.tar.gz"
    collecting.collect(run, target, {}, lambda done, total: None)
    with tarfile.open(target) as found:
        return found.extractfile(f"{run.path.name}/collected/scheduler.txt").read().decode()


def test_all_jobs_of_a_cluster_are_asked_for_at_once(run, terminal, tmp_path):
    """Fifty attempts were fifty questions in each way of asking, one after another."""
    words = scheduler_words(run, tmp_path)
    asked = (terminal.folder / "asked").read_text().splitlines()
    assert [line.partition(" ")[0] for line in asked] == ["squeue", "sacct"] * 2
    assert "--jobs=70,72" in asked[0]
    assert "--jobs=71" in asked[2]
    assert words.count("the words of") == 4


def test_a_scheduler_that_gives_no_answer_is_asked_once(run, tmp_path, monkeypatch):
    """Each question may take a minute."""
    asked = []

    def silent(command, *_):
        asked.append(command[0])
        raise NoAnswerError(f"{command[0]!r} gave no answer within 60 s")

    monkeypatch.setattr(shell, "run", silent)
    monkeypatch.setattr(collecting, "torch_versions", lambda python: {})
    words = scheduler_words(run, tmp_path)
    assert asked == ["squeue"]
    assert words.endswith("'squeue' gave no answer within 60 s; nothing else was asked\n")


def site_files(folder, tmp_path):
    """Name → content of the site files in the archive of a run."""
    target = tmp_path / "r.tar.gz"
    collecting.collect(folder, target, {}, lambda done, total: None)
    with tarfile.open(target) as found:
        return {
            Path(each.name).name: found.extractfile(each).read().decode()
            for each in found
            if "/collected/site/" in each.name
        }


def test_a_users_own_file_and_the_bundled_one_it_extends_are_both_there(terminal, tmp_path, monkeypatch):
    """They have one name, and the base took the place of the file that counts."""
    own = tmp_path / "site_configs" / "generic-slurm.yaml"
    own.parent.mkdir()
    own.write_text("name: generic-slurm\nextends: generic-slurm\nscheduler: {poll_seconds: 60}\n")
    monkeypatch.setenv("HPCDL_PATH", str(tmp_path))
    (folder,) = preparing.prepare(terminal.study(), terminal.runs)
    found = site_files(folder, tmp_path)
    assert list(found) == ["1-generic-slurm.yaml", "2-generic-slurm.yaml"]
    assert found["1-generic-slurm.yaml"] == own.read_text()
    assert "partitions:" in found["2-generic-slurm.yaml"]


def test_a_site_given_by_its_path_is_there_and_no_other_of_its_name(terminal, tmp_path, monkeypatch):
    """It was looked for by its name: the bundled file of that name was packed, which says something else."""
    own = small_site(terminal, "kind: slurm", "kind: slurm\n  max_array: 7")
    monkeypatch.chdir(tmp_path)
    (folder,) = preparing.prepare(terminal.study(f"./{Path(own).name}"), terminal.runs)
    monkeypatch.chdir("/")
    assert site_files(folder, tmp_path) == {"1-small.yaml": Path(own).read_text()}
    rewrite(folder, reshaped(folder, Change(settings=("resources.walltime=00:07:00",))), 0)
    assert site_files(folder, tmp_path) == {"1-small.yaml": Path(own).read_text()}
    Path(own).unlink()
    assert site_files(folder, tmp_path) == {}
