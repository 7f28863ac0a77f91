"""The local backend with real processes: detached, followed by id, cancelled as a group."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from schedulers.sample import interpreter, job, prepared, site

from hpcdl import shell
from hpcdl.errors import NoAnswerError, SchedulerError, SiteError
from hpcdl.run_folder import RunFolder
from hpcdl.schedulers import local
from hpcdl.schedulers.base import JobState, Report, Scheduler
from hpcdl.schedulers.script import render

MACHINE = site("local", "fork", scheduler={"gpu_request": "none"}, nodes={"gpu": {"device": {"kind": "cpu"}}})
(QUERY,) = local.QUERIES


@pytest.fixture
def started() -> Iterator[list[str]]:
    """Ids of jobs; what a failing test leaves running is ended."""
    ids: list[str] = []
    yield ids
    for job_id in ids:
        shell.run(local.cancel(job_id))


def ask(*job_ids: str) -> dict[str, Report]:
    return QUERY.parse(shell.run(QUERY.command(job_ids)))


def wait_until(condition: Callable[[], bool], timeout_s: float = 100) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def submit(
    tmp_path: Path, body: str, started: list[str], name: str = "run", **asked
) -> tuple[str, RunFolder]:
    folder = prepared(tmp_path / name)
    folder.script.write_text(
        render(job(folder.path, MACHINE, python=interpreter(folder.path, body), **asked))
    )
    job_id = local.submitted(shell.run(local.submit(folder.script), cwd=folder.path))
    started.append(job_id)
    return job_id, folder


def exit_code(folder: RunFolder) -> int:
    return int(json.loads(folder.job_exit(1).read_text())["exit_code"])


def test_job_outlives_its_submission_and_is_seen_running(tmp_path, started):
    job_id, folder = submit(tmp_path, f"until [ -e {tmp_path}/go ]; do sleep 0.1; done; echo done", started)
    assert ask(job_id) == {job_id: Report(JobState.RUNNING)}
    (tmp_path / "go").touch()
    wait_until(lambda: not ask(job_id))
    assert exit_code(folder) == 0
    assert folder.job_log(1).read_text() == "done\ndone\n"


def test_job_leads_a_session_of_its_own(tmp_path, started):
    """Closing the terminal ends the session of the shell one submitted from, and not this one."""
    job_id, _ = submit(tmp_path, "sleep 5", started)
    assert os.getsid(int(job_id.partition("-")[0])) == int(job_id.partition("-")[0]) != os.getsid(0)


def test_submission_returns_at_once(tmp_path, started):
    began = time.monotonic()
    submit(tmp_path, "sleep 60", started)
    assert time.monotonic() - began < 2


def test_first_failure_ends_the_other_ranks_and_its_code_is_kept(tmp_path, started):
    body = 'trap "exit 9" TERM; [ "$RANK" = 1 ] && exit 7; sleep 60 & wait'
    began = time.monotonic()
    job_id, folder = submit(tmp_path, body, started, ranks_per_node=4)
    wait_until(lambda: not ask(job_id))
    assert exit_code(folder) == 7
    assert time.monotonic() - began < 10


def test_a_crash_outweighs_the_end_of_a_rank_that_ends_at_once_for_want_of_it(tmp_path, started):
    """Both were gone at the same look; of rank 0, which was asked first, came 1, and the run was told as killed."""
    body = f'[ "$RANK" = 1 ] && kill -SEGV $$; touch {tmp_path}/up; exit 1'
    _, folder = submit(tmp_path, body, started)
    wait_until(folder.job_exit(1).exists)
    assert exit_code(folder) == 139


def test_rank_that_cannot_start_is_a_failure(tmp_path, started):
    folder = prepared(tmp_path / "run")
    folder.script.write_text(render(job(folder.path, MACHINE, python="/no/such/python")))
    started.append(local.submitted(shell.run(local.submit(folder.script), cwd=folder.path)))
    wait_until(folder.job_exit(1).exists)
    assert exit_code(folder) == 127
    assert "/no/such/python" in folder.job_log(1).read_text()


@pytest.mark.slow
def test_rank_that_ignores_term_is_killed_after_the_grace(tmp_path, started):
    deaf = tmp_path / "deaf"
    body = (
        f'[ "$RANK" = 0 ] && {{ until [ -e {deaf} ]; do sleep 0.1; done; exit 7; }}; '
        f'trap "" TERM; touch {deaf}; while :; do sleep 0.2; done'
    )
    began = time.monotonic()
    _, folder = submit(tmp_path, body, started)
    wait_until(folder.job_exit(1).exists)
    assert exit_code(folder) == 7
    assert 8 < time.monotonic() - began < 20


def test_cancel_reaches_every_rank_as_a_signal_it_can_act_on(tmp_path, started):
    body = f'trap "echo >{tmp_path}/saved-$RANK; exit 143" TERM; touch {tmp_path}/up-$RANK; sleep 60 & wait'
    job_id, folder = submit(tmp_path, body, started, ranks_per_node=3)
    wait_until(lambda: len(list(tmp_path.glob("up-*"))) == 3)
    local.cancelled(shell.run(local.cancel(job_id)))
    wait_until(lambda: not ask(job_id))
    assert len(list(tmp_path.glob("saved-*"))) == 3
    assert exit_code(folder) == 143


def test_cancelling_a_job_that_is_over_is_no_error(tmp_path, started):
    job_id, _ = submit(tmp_path, "true", started)
    wait_until(lambda: not ask(job_id))
    local.cancelled(shell.run(local.cancel(job_id)))


def test_process_that_got_the_id_later_is_neither_the_job_nor_cancelled(tmp_path):
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        stale = f"{other.pid}-1@{os.uname().nodename}"
        assert ask(stale) == {}
        local.cancelled(shell.run(local.cancel(stale)))
        assert other.poll() is None
        other.kill()


def test_program_name_with_parentheses_does_not_confuse(tmp_path):
    """The name in /proc/PID/stat is whatever the program is called."""
    program = tmp_path / ") R 1 (x"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"], start_new_session=True) as process:
        start = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()[19]
        job_id = f"{process.pid}-{start}@{os.uname().nodename}"
        assert ask(job_id) == {job_id: Report(JobState.RUNNING)}
        local.cancelled(shell.run(local.cancel(job_id)))
        assert process.wait(5) == -signal.SIGTERM


def test_zombie_is_not_alive():
    with subprocess.Popen(["sleep", "60"]) as child:
        start = Path(f"/proc/{child.pid}/stat").read_text().split()[21]
        job_id = f"{child.pid}-{start}@{os.uname().nodename}"
        assert job_id in ask(job_id)
        child.kill()
        wait_until(lambda: Path(f"/proc/{child.pid}/stat").read_text().split()[2] == "Z")
        assert ask(job_id) == {}


def test_several_jobs_are_told_apart_by_one_question(tmp_path, started):
    long, _ = submit(tmp_path, "sleep 20", started, name="long")
    short, _ = submit(tmp_path, "true", started, name="short")
    wait_until(lambda: short not in ask(short))
    assert set(ask(long, short)) == {long}


def test_job_of_another_machine_is_not_called_gone():
    """Run folders are often shared by several login nodes."""
    job_id = "1-1@elsewhere"
    seen = ask(job_id)[job_id]
    assert seen.state is JobState.UNKNOWN
    assert "elsewhere" in seen.words
    with pytest.raises(NoAnswerError, match="runs on elsewhere"):
        local.cancelled(shell.run(local.cancel(job_id)))


def test_submission_that_fails_says_why():
    with pytest.raises(SchedulerError, match="could not be started: setsid: failed"):
        local.submitted(shell.Completed(1, "", "setsid: failed"))


def test_more_than_this_machine_is_refused(tmp_path):
    with pytest.raises(SiteError, match="is one machine, but the job wants 2 nodes"):
        local.directives(job(tmp_path, MACHINE, nodes=2))


@pytest.mark.mpi
def test_mpi_ranks_find_each_other_under_mpiexec(tmp_path, started):
    """mpiexec comes from the interpreter's own folder, whatever PATH says."""
    pytest.importorskip("mpi4py")
    folder = prepared(tmp_path / "run")
    (tmp_path / "hpcdl").mkdir()
    (tmp_path / "hpcdl" / "__init__.py").touch()
    (tmp_path / "hpcdl" / "engine.py").write_text(
        "import sys\nfrom mpi4py import MPI\nworld = MPI.COMM_WORLD\n"
        "with open(f'{sys.argv[1]}/seen-{world.rank}', 'w') as file:\n"
        "    print(world.allreduce(world.rank), world.size, file=file)\n"
    )
    work = job(
        folder.path, MACHINE, transport="mpi", ranks_per_node=4, environment={"PYTHONPATH": str(tmp_path)}
    )
    folder.script.write_text(render(work))
    started.append(local.submitted(shell.run(local.submit(folder.script), cwd=folder.path)))
    wait_until(folder.job_exit(1).exists)
    assert exit_code(folder) == 0, folder.job_log(1).read_text()
    assert [(folder.path / f"seen-{rank}").read_text() for rank in range(4)] == ["6 4\n"] * 4


def test_module_is_a_scheduler():
    backend: Scheduler = local
    assert backend.TEMPLATE == "local.sh.j2"


def test_question_that_fails_is_an_error_and_no_end():
    with pytest.raises(SchedulerError, match="could not be read: bash: broken"):
        QUERY.parse(shell.Completed(1, "", "bash: broken"))
