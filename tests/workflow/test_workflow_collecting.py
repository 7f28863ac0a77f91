"""What an archive holds of the scheduler's own words."""

import tarfile

import pytest

from hpcdl import shell
from hpcdl.errors import NoAnswerError
from hpcdl.runs import store
from hpcdl.workflow import collecting
from hpcdl.workflow.studies import preparing


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
