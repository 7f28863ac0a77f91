"""Asking a scheduler: what it refuses, garbles or never answers is told with its own words."""

import pytest
from survey.recorded import PBS, PLAIN, pbs_answers, slurm_answers, text

from hpcdl.errors import SchedulerError, UsageError
from hpcdl.survey import asking


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Put programs on PATH that answer as recorded; nothing else of a scheduler is there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name, script):
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)

    def answering(name, answers):
        """A program that prints what was recorded for its first words."""
        lines = []
        for index, (words, answer) in enumerate(answers.items()):
            (tmp_path / f"{name}-{index}").write_text(answer)
            lines.append(
                f'case "$*" in "{words}"*) while IFS= read -r l; do printf "%s\\n" "$l"; done <{tmp_path}/{name}-{index};; esac'
            )
        put(name, "\n".join(lines))

    put.answering = answering
    return put


def test_slurm_is_found_and_asked(programs):
    words = ("show config", "show partition", "show node")
    programs.answering("scontrol", dict(zip(words, slurm_answers(), strict=True)))
    assert asking.here() == ["slurm"]
    assert asking.ask(asking.chosen(None)) == PLAIN


def test_pbs_is_found_and_asked(programs):
    server, queues, nodes = pbs_answers()
    programs.answering("qstat", {"-B": server, "-Q": queues})
    programs.answering("pbsnodes", {"-a": nodes})
    assert asking.ask(asking.chosen(None)) == PBS


def test_no_scheduler_is_told_with_what_was_looked_for(programs):
    with pytest.raises(
        SchedulerError, match="no scheduler's programs are on PATH here; looked for scontrol, pbsnodes"
    ):
        asking.chosen(None)


def test_several_schedulers_want_a_choice(programs):
    programs("scontrol", "exit 0")
    programs("pbsnodes", "exit 0")
    with pytest.raises(UsageError, match="slurm and pbs"):
        asking.chosen(None)
    assert asking.chosen("pbs") == "pbs"


@pytest.mark.parametrize("kind", ["flux", "lsf", "local", "nonsense"])
def test_a_scheduler_that_cannot_be_asked_is_told(kind):
    with pytest.raises(UsageError, match=f"a {kind} machine cannot be asked yet, only slurm, pbs"):
        asking.ask(kind)


@pytest.mark.parametrize(
    ("program", "kind", "recorded"),
    [
        ("scontrol", "slurm", "slurm-no-configuration.err"),
        ("qstat", "pbs", "down-pbsnodes.err"),
    ],
)
def test_a_refusal_is_told_in_the_schedulers_own_words(programs, tmp_path, program, kind, recorded):
    (tmp_path / "words").write_text(text(recorded))
    programs(program, f'while IFS= read -r l; do echo "$l" >&2; done <{tmp_path}/words; exit 1')
    with pytest.raises(SchedulerError) as refused:
        asking.ask(kind)
    assert text(recorded).strip() in refused.value.message
    assert refused.value.message.startswith(f"'{program} ")


def test_a_scheduler_that_hangs_is_given_up(programs):
    programs("scontrol", "read -r -t 20 <> <(:)")
    with pytest.raises(SchedulerError, match="'scontrol' gave no answer within"):
        asking.ask("slurm", timeout_s=0.3)


def test_garbage_is_told(programs):
    programs("scontrol", "echo '<html>'")
    with pytest.raises(SchedulerError, match="'<html>'"):
        asking.ask("slurm")


@pytest.mark.parametrize(
    ("words", "launcher"),
    [
        ("HYDRA build details:\n    Version: 4.3.0", "mpiexec-hydra"),
        (
            "mpiexec (Open MPI) 4.1.6\n\nReport bugs to http://www.open-mpi.org/community/help/",
            "mpiexec-openmpi",
        ),
        ("mpiexec (OpenRTE) 2.1.1", "mpiexec-openmpi"),
        ("PALS 1.3.4", "mpiexec-pals"),
        ("", "mpiexec-hydra"),
    ],
)
def test_mpiexec_is_known_by_its_words(words, launcher):
    assert asking.mpiexec(words) == launcher


def test_the_mpiexec_that_is_here_is_asked(programs):
    programs("mpiexec", "echo 'mpiexec (Open MPI) 5.0.3'")
    assert (asking.launcher("slurm"), asking.launcher("pbs")) == ("srun", "mpiexec-openmpi")
