"""The PBS backend end to end, by the command line, on a stand-in that behaves as was recorded of OpenPBS."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.pbs import PbsCluster
from cluster.slurm import until
from schedulers.sample import HOSTILE, HOSTILE_NAME, interpreter, job, prepared

from hpcdl import shell
from hpcdl.errors import SchedulerError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics
from hpcdl.schedulers import pbs
from hpcdl.schedulers.base import After, Job, JobState, Report
from hpcdl.schedulers.script import render
from hpcdl.sites.site import Site
from hpcdl.spec import load

SPEC = (Path(__file__).parents[1] / "tiny.yaml").read_text()
ENDS = {"completed", "failed"}
FOUR_RANKS = ("--gpus", "4", "--set", "parallelism.data=4", "--set", "resources.nodes=2")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PbsCluster]:
    with PbsCluster(tmp_path / "pbs", kill_delay_s=3) as running:
        for name, value in running.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HPCDL_SITE", str(running.site))
        monkeypatch.setenv("HPCDL_RUNS", str(tmp_path / "runs"))
        yield running


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    path = tmp_path / "tiny.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def machine(cluster: PbsCluster) -> Site:
    return load.validate(load.read(cluster.site), Site)


def hpcdl(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpcdl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


def status(run: object = "last") -> dict[str, Any]:
    answer = hpcdl("status", run, "--json")
    assert answer.returncode in (0, 5), answer.stderr
    told: dict[str, Any] = json.loads(answer.stdout)
    return told


def ranks_do(cluster: PbsCluster, tmp_path: Path, body: str) -> None:
    """Let every rank run ``body`` instead of the engine."""
    program = interpreter(tmp_path, body)
    cluster.site.write_text(f"{cluster.site.read_text()}\nsoftware: {{python: {program}}}\n")


def submit(work: Job) -> str:
    folder = RunFolder(work.folder)
    folder.script.write_text(render(work))
    return pbs.submitted(shell.run(pbs.submit(folder.script), cwd=folder.path))


def ask(*job_ids: str) -> dict[str, Report]:
    found: dict[str, Report] = {}
    for query in pbs.QUERIES:
        if missing := [job_id for job_id in job_ids if job_id not in found]:
            found |= query.parse(shell.run(query.command(missing)))
    return {job_id: found[job_id] for job_id in job_ids if job_id in found}


def wait_for(job_id: str, good: Callable[[Report], bool], timeout_s: float = 120) -> Report:
    deadline = time.monotonic() + timeout_s
    while not ((seen := ask(job_id)) and good(seen[job_id])):
        assert time.monotonic() < deadline, f"job {job_id} is still {seen}"
        time.sleep(0.1)
    return seen[job_id]


def end_of(job_id: str) -> Report:
    return wait_for(job_id, lambda seen: seen.state.over)


def test_training_over_two_hosts_ends_well_and_everything_told_of_it_is_true(cluster, spec):
    answer = hpcdl("submit", spec, *FOUR_RANKS, "--wait", "--json")
    folder = RunFolder(Path(json.loads(answer.stdout)["path"]))
    assert answer.returncode == 0, folder.job_log(1).read_text()
    losses = [[record.loss for record in metrics.steps(folder, rank)] for rank in range(4)]
    assert losses[0][-1] < losses[0][0]
    assert losses == [losses[0]] * 4
    told = status()
    assert (told["state"], told["step"]) == ("completed", 6)
    assert told["attempts"][0]["job_id"] == "1.standin"
    assert "ranks 0-3 |" in hpcdl("logs", "last").stdout
    assert cluster.job("1.standin")["exec_host"] == "cn01/0*8+cn02/0*8"


@pytest.mark.parametrize(("ending", "code"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_rank_that_fails_ends_the_others_and_its_exit_code_is_the_jobs(cluster, spec, tmp_path, ending, code):
    ranks_do(cluster, tmp_path, f'[ "$RANK" = 3 ] && {{ {ending}; }}; exec sleep 600')
    began = time.monotonic()
    assert hpcdl("submit", spec, *FOUR_RANKS, "--wait").returncode == 5
    assert time.monotonic() - began < 240
    told = status()
    assert (told["state"], told["attempts"][0]["exit_code"]) == ("failed", code)
    assert cluster.job("1.standin")["Exit_status"] == code


@pytest.mark.slow
def test_a_run_that_was_stopped_by_its_walltime_says_so_and_is_resumed(cluster, spec, tmp_path):
    ranks_do(cluster, tmp_path, '[ "$HPCDL_ATTEMPT" = 2 ] || exec sleep 600')
    short = ("--set", "resources.walltime=00:00:15", "--set", "chain.attempts=1")
    assert hpcdl("submit", spec, *FOUR_RANKS, *short, "--wait").returncode == 5
    told = status()
    assert (told["state"], told["attempts"][0]["reason"]) == ("timeout", "walltime exceeded")
    assert hpcdl("resume", "last").returncode == 0
    assert until(lambda: status()["state"] == "completed", 120)
    assert [attempt["job_id"] for attempt in status()["attempts"]] == ["1.standin", "2.standin"]


def test_run_is_cancelled_while_it_waits_and_while_it_runs(cluster, spec, tmp_path):
    body = f"trap 'touch {tmp_path}/saved-$RANK; exit 0' TERM; touch {tmp_path}/up-$RANK; sleep 600 & wait"
    ranks_do(cluster, tmp_path, body)
    first, second = (json.loads(hpcdl("submit", spec, *FOUR_RANKS, "--json").stdout)["run"] for _ in range(2))
    assert until(lambda: len(list(tmp_path.glob("up-*"))) == 4, 120)
    waiting = status(second)
    assert (waiting["state"], waiting["attempts"][0]["reason"].partition(":")[0]) == ("queued", "Q")
    for run in (second, first):
        assert hpcdl("cancel", run).returncode == 0
        assert until(lambda run=run: status(run)["state"] == "cancelled", 120)
    # TERM reached the ranks of the second host too, which no server sends it to.
    assert len(list(tmp_path.glob("saved-*"))) == 4
    assert hpcdl("cancel", first).returncode == 0


def test_server_without_history_leaves_the_end_to_the_scripts_own_record(cluster, spec, tmp_path):
    cluster.switch(history=False)
    ranks_do(cluster, tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; exit 7")
    hpcdl("submit", spec, *FOUR_RANKS)
    assert until(lambda: status()["state"] == "running", 120)
    (tmp_path / "go").touch()
    assert until(lambda: status()["state"] == "failed", 120)
    assert status()["attempts"][0]["exit_code"] == 7
    assert ask("1.standin") == {}


@pytest.mark.slow
def test_server_that_is_away_is_an_error_and_no_end(cluster, spec, tmp_path):
    ranks_do(cluster, tmp_path, "exec sleep 600")
    hpcdl("submit", spec, *FOUR_RANKS)
    assert until(lambda: status()["state"] == "running", 120)
    cluster.switch(away=True)
    assert until(lambda: hpcdl("status", "last").returncode == 4, 60)  # not from the answer of a moment ago
    for verb in (("status", "last"), ("cancel", "last"), ("submit", spec, *FOUR_RANKS)):
        answer = hpcdl(*verb)
        assert answer.returncode == 4, verb
        assert "cannot connect to server standin (errno=15010)" in answer.stderr.replace("\n", " ")
    first = min((tmp_path / "runs").glob("tiny-*")).name
    last_seen = hpcdl("status", first, "--json")
    assert (last_seen.returncode, json.loads(last_seen.stdout)["state"]) == (4, "running")
    packed = hpcdl("collect", first, "--output", tmp_path / "run.tar.gz")
    assert (packed.returncode, "note: states are as last seen" in packed.stderr) == (0, True)
    cluster.switch(away=False)
    assert until(lambda: hpcdl("status", first).returncode == 0, 60)
    assert status(first)["state"] == "running"


def test_server_that_does_not_answer_is_given_up(cluster):
    """A frozen server blocks its clients for ever; the real limit is a minute."""
    cluster.switch(frozen=True)
    for query in pbs.QUERIES:
        with pytest.raises(SchedulerError, match=r"'qstat' gave no answer within 0 s"):
            shell.run(query.command(["1.standin"]), timeout_s=0.4)


def test_refused_job_is_told_in_qsubs_own_words(cluster, spec):
    cluster.site.write_text(cluster.site.read_text().replace("scatter,", "scatter, select: {tier: '1'},"))
    answer = hpcdl("submit", spec, *FOUR_RANKS)
    assert answer.returncode == 4
    assert "qsub: Unknown resource: tier" in answer.stderr
    assert status()["state"] == "refused"


def test_hostile_text_arrives_in_every_rank_and_nothing_of_it_runs(machine, tmp_path):
    """pbsdsh hands down none of the script's variables, so each host sets them itself."""
    folder = prepared(tmp_path / HOSTILE_NAME)
    body = f'for n in {" ".join(HOSTILE)}; do printf "%s=%s\\0" "$n" "${{!n}}"; done >"{tmp_path}/seen-$RANK"; printf "%s" "$LOCAL_RANK $WORLD_SIZE $PWD" >"{tmp_path}/folder-$RANK"'
    work = job(folder.path, machine, nodes=2, python=interpreter(tmp_path, body), environment=HOSTILE)
    seen = end_of(submit(work))
    assert seen.state is JobState.COMPLETED, folder.job_log(1).read_text()
    expected = "".join(f"{name}={value}\0" for name, value in HOSTILE.items()).encode()
    for rank in range(4):
        assert (tmp_path / f"seen-{rank}").read_bytes() == expected
        assert (tmp_path / f"folder-{rank}").read_text() == f"{rank % 2} 4 {folder.path}"
    assert not list(tmp_path.rglob("pwned*"))


def test_every_rank_can_read_which_hosts_the_job_has(machine, tmp_path):
    """Those of the first host could not, so a rank that never came was not named with its host."""
    folder = prepared(tmp_path / HOSTILE_NAME)
    body = f'cat -- "$PBS_NODEFILE" >"{tmp_path}/hosts-$RANK"'
    seen = end_of(submit(job(folder.path, machine, nodes=2, python=interpreter(tmp_path, body))))
    assert seen.state is JobState.COMPLETED, folder.job_log(1).read_text()
    assert [(tmp_path / f"hosts-{rank}").read_text() for rank in range(4)] == ["cn01\ncn02\n"] * 4


def test_log_can_be_read_while_the_job_runs(machine, tmp_path):
    folder = prepared(tmp_path / "run")
    job_id = submit(job(folder.path, machine, nodes=2, python=interpreter(tmp_path, "echo here; sleep 600")))
    wait_for(job_id, lambda seen: seen.state is JobState.RUNNING)
    assert until(lambda: folder.job_log(1).read_text().count("here") == 4, 120)
    pbs.cancelled(shell.run(pbs.cancel(job_id)))
    assert end_of(job_id).state is JobState.CANCELLED


def test_host_that_cannot_set_itself_up_ends_the_job(machine, tmp_path):
    """As where a module is missing on one host: the ranks of the others would wait for its ranks."""
    setup = Site.model_validate(
        machine.model_dump() | {"software": {"setup": ['[ "${1-}$PBS_NODENUM" != host1 ] || exit 9']}}
    )
    folder = prepared(tmp_path / "run")
    job_id = submit(job(folder.path, setup, nodes=2, python=interpreter(tmp_path, "sleep 600")))
    assert end_of(job_id).exit_code == 9
    assert json.loads(folder.job_exit(1).read_text()) == {"exit_code": 9}


def test_host_that_leaves_no_word_is_no_success(machine, tmp_path):
    """pbsdsh exits with 0 although everything on the second host was killed, what watches over it included."""
    folder = prepared(tmp_path / "run")
    body = '[ "$RANK" != 3 ] || kill -9 0'
    job_id = submit(job(folder.path, machine, nodes=2, python=interpreter(tmp_path, body)))
    assert end_of(job_id).exit_code == 1
    assert "host 2 of 2 left no exit code: not started, or lost" in folder.job_log(1).read_text()


def test_chunks_that_are_not_one_a_host_are_refused_by_the_job_itself(machine, tmp_path):
    packed = machine.model_dump() | {
        "scheduler": machine.scheduler.model_dump() | {"select": {"mpiprocs": "2"}}
    }
    folder = prepared(tmp_path / "run")
    job_id = submit(job(folder.path, Site.model_validate(packed), nodes=2, python="/bin/true"))
    assert end_of(job_id).exit_code == 1
    assert "one task on each of 2 hosts, but PBS gave: cn01 cn01 cn02 cn02" in folder.job_log(1).read_text()


def test_child_waits_for_its_parent_and_is_deleted_when_that_ends_otherwise(machine, tmp_path):
    def start(name: str, body: str, after: After | None = None) -> str:
        (tmp_path / name).mkdir()
        python = interpreter(tmp_path / name, body)
        work = job(prepared(tmp_path / name / "run").path, machine, python=python)
        return submit(Job(work.run, work.site, work.folder, 1, python, after=after))

    parent = start("parent", f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; exit 3")
    ok, failed = (start(ending, "true", After(ending, (parent,))) for ending in ("ok", "failed"))
    stuck = start("stuck", "true", After("ok", (failed,)))
    assert ask(ok)[ok].words.startswith(f"H: waits for {parent}; ")
    (tmp_path / "go").touch()
    assert end_of(parent).exit_code == 3
    assert end_of(ok) == Report(
        JobState.CANCELLED,
        f"deleted before it ran: PBS could not fulfil its dependency afterok:{parent}",
    )
    assert end_of(failed).state is JobState.COMPLETED
    assert end_of(stuck).state is JobState.COMPLETED
    assert end_of(start("unknown", "true", After("any", ("99.standin",)))).state is JobState.CANCELLED


def test_child_of_a_job_that_was_deleted_before_it_ran_is_said_to_wait_for_ever(machine, tmp_path, cluster):
    def start(name: str, after: After | None, nodes: int = 1) -> str:
        work = job(prepared(tmp_path / name).path, machine, python="/bin/true", nodes=nodes)
        return submit(Job(work.run, work.site, work.folder, 1, work.python, after=after))

    parent = start("parent", None, nodes=4)  # the cluster has three
    child = start("child", After("any", (parent,)))
    pbs.cancelled(shell.run(pbs.cancel(parent)))
    seen = ask(parent, child)
    assert seen[parent].state is JobState.CANCELLED
    assert seen[child].state is JobState.QUEUED
    assert f"{parent} was deleted before it ran, and PBS holds what waits" in seen[child].words


def test_each_element_of_an_array_has_its_own_folder_log_and_end(cluster, spec, tmp_path):
    body = 'echo "element $PBS_ARRAY_INDEX rank $RANK"; [ "$PBS_ARRAY_INDEX" != 1 ] || exit 5'
    ranks_do(cluster, tmp_path, body)
    answer = hpcdl("submit", spec, *FOUR_RANKS, "--repeat", "3", "--at-once", "2")
    assert answer.returncode == 0, answer.stderr
    rows = json.loads(hpcdl("list", "--json").stdout)
    assert until(lambda: {row["state"] for row in json.loads(hpcdl("list", "--json").stdout)} <= ENDS, 120)
    for index, (row, code) in enumerate(zip(rows, (0, 5, 0), strict=True)):
        told = status(row["run"])
        assert told["attempts"][0]["job_id"] == f"1[{index}].standin"
        assert told["attempts"][0]["exit_code"] == code
        log = RunFolder(tmp_path / "runs" / row["run"]).job_log(1).read_text()
        lines = [f"element {index} rank {rank}" for rank in range(4)]
        assert sorted(line for line in log.splitlines() if not line.startswith("pbsdsh: ")) == lines
    assert ask("1[].standin")["1[].standin"].state is JobState.FAILED


def test_stand_in_says_what_the_recordings_say(cluster, tmp_path):
    """The same words and exit codes as recorded, but for ids and times."""
    recordings = Path(__file__).parents[1] / "schedulers" / "recordings"
    for command, name in ((["qstat", "77777"], "qstat-unknown"), (["qdel", "77777"], "qdel-unknown")):
        answer = shell.run(command)
        recorded = (recordings / f"{name}.err").read_text()
        assert (answer.exit_code, answer.stderr.split()[:4]) == (153, recorded.split()[:4])
    cluster.switch(history=False)
    answer = shell.run(["qstat", "-x", "-f", "-F", "json", "9.standin"])
    recorded = (recordings / "nohist-qstat-xf-finished.err").read_text()
    assert (answer.exit_code, answer.stderr) == (0, recorded.replace("191.pbshead", "9.standin"))
    assert "Jobs" not in json.loads(answer.stdout)
