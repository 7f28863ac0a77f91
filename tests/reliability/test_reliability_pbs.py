"""The same on PBS where it differs: on a stand-in that behaves as was recorded of a real OpenPBS."""

from __future__ import annotations

import json
import time
from functools import partial

import pytest
from cluster.pbs import PbsCluster
from reliability.drill import STEPS, Drill
from reliability.rows import scenario

pbs = partial(scenario, "PBS")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with three hosts of two slots each."""
    with PbsCluster(tmp_path / "pbs", kill_delay_s=30) as running:
        for name, value in running.env.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def drill(server, tmp_path) -> Drill:
    """A run of two ranks on two hosts."""
    return Drill(tmp_path / "drill", server.env | {"HPCDL_SITE": str(server.site)})


@pbs("exit 7 in one rank", "the program of rank 1, on the second host, calls `sys.exit(7)` in step 8")
@pytest.mark.slow
def test_exit_7_of_rank_1(drill, tell):
    drill.trains()
    drill.order(1, "exit 7")
    drill.reports("failed", who=1, exit_code=7)
    tell(drill.resumes(lost=1))


@pbs("kill -9 of one rank", "rank 1 is sent SIGKILL in step 8")
@pytest.mark.slow
def test_kill_9_of_rank_1(drill, tell):
    drill.trains()
    drill.kill(1)
    drill.reports("failed", who=1, exit_code=137, cause="killed")
    tell(drill.resumes(lost=1))


@pbs("the first host is lost", "all its processes are gone; the server ends the job with Exit_status -20")
@pytest.mark.slow
def test_the_first_host_is_lost(drill, tell, server):
    drill.trains()
    server.lose_host(drill.job_id(), 0)
    drill.reports("node failed", cause="node lost")
    tell(drill.resumes(lost=1))


@pbs(
    "another host is lost",
    "all its processes are gone, and the server leaves the job as it is: the ranks notice",
)
@pytest.mark.slow
def test_another_host_is_lost(drill, tell, server):
    drill.trains()
    server.lose_host(drill.job_id(), 1)
    drill.let_go()
    drill.reports("failed", who=1, exit_code=137, cause="killed")
    tell(drill.resumes(lost=1))


@pbs("qdel while it waits", "another job has all hosts")
@pytest.mark.slow
def test_qdel_while_queued(drill, tell, server):
    server.switch(full=True)
    drill.submit()
    server.qdel(drill.job_id())
    drill.reports("cancelled", cause="cancelled")
    server.switch(full=False)
    tell(drill.resumes(lost=0))


@pbs("qdel while it trains", "in step 8")
@pytest.mark.slow
def test_qdel_while_running(drill, tell, server):
    drill.trains()
    server.qdel(drill.job_id())
    drill.reports("cancelled", cause="cancelled")
    tell(drill.resumes(lost=1))


@pbs("qdel while it starts", "when its ranks are there and none has done a step")
@pytest.mark.slow
def test_qdel_while_starting(drill, tell, server):
    drill.submit()
    drill.hold(after=0)
    drill.wait(lambda: len(drill.processes()) == 2, "two ranks")
    server.qdel(drill.job_id())
    drill.reports("cancelled", cause="cancelled")
    assert drill.done == 0
    tell(drill.resumes(lost=0))


@pbs("qdel while it saves itself", "in step 8; rank 0 has saved step 6, and rank 1 has not yet")
@pytest.mark.slow
def test_qdel_while_checkpointing(drill, tell, server):
    drill.saves()
    server.qdel(drill.job_id())
    drill.reports("cancelled", cause="cancelled")
    assert drill.saved() == 3
    tell(drill.resumes(lost=4))


@pbs("requeue by the administrator", "`qrerun` in step 8, where the site lets PBS run a job again")
@pytest.mark.slow
def test_requeue_by_the_administrator(drill, tell, server, tmp_path):
    again = tmp_path / "again.yaml"
    again.write_text(f"{server.site.read_text()}\npolicy: {{requeue: true}}\n")
    drill.variables["HPCDL_SITE"] = str(again)
    drill.trains()
    server.qrerun(drill.job_id())
    drill.wait(drill.first_is_gone, "the end of the ranks")
    tell(drill.goes_on("requeued", lost=1, then="by itself, as the same job"))


@pbs("walltime with room to save", "the script's own clock warns; the run saves itself and stops")
@pytest.mark.slow
def test_walltime_with_room(drill, tell):
    drill.submit("resources.walltime=00:10:00", "checkpoint.before_limit_seconds=540")
    drill.wait(lambda: drill.folder.request(1).read_text() != "", "the warning")
    drill.reaches(7)
    time.sleep(1)  # rank 0 looks for the warning once a second
    tell(drill.goes_on("paused", exit_code=0, lost=0, then="by itself"))


@pbs("walltime without room to save", "no warning was asked for; PBS ends the job in step 8")
@pytest.mark.slow
def test_walltime_without_room(drill, tell, server):
    drill.trains("resources.walltime=00:01:00", "checkpoint.before_limit_seconds=0")
    drill.wait(drill.folder.job_exit(1).exists, "the end of its walltime")
    tell(drill.goes_on("timeout", cause="walltime", lost=1, then="by itself"))


@pbs("the server is down during submit", "submitted while nobody answers")
@pytest.mark.slow
def test_server_down_during_submit(drill, tell, server):
    server.switch(away=True)
    drill.submit_in_vain("cannot connect to server")
    drill.stands("prepared")
    server.switch(away=False)
    tell(drill.resumes(lost=0))


@pbs("the server is down during status", "asked for its state while nobody answers")
@pytest.mark.slow
def test_server_down_during_status(drill, tell, server):
    drill.trains()
    before = drill.status()
    server.switch(away=True)
    drill.outlast_answers()
    answer = drill.hpcdl("status", drill.folder.path, "--json")
    assert answer.returncode == 4
    assert "PBS does not answer" in answer.stderr
    assert json.loads(answer.stdout) == before
    server.switch(away=False)
    tell(drill.completes(then="undisturbed"))


@pbs("the server is down for a minute", "the run ends in that time, and nobody can be told")
@pytest.mark.slow
def test_server_down_for_a_minute(drill, tell, server):
    drill.trains()
    end = time.monotonic() + 60
    server.switch(away=True)
    drill.let_go()
    drill.wait(lambda: drill.newest() == STEPS, "the last step")
    time.sleep(max(0.0, end - time.monotonic()))
    server.switch(away=False)
    tell(drill.completes(then="undisturbed"))


@pbs("PBS forgets it", "no history: asked when the server no longer knows the job")
@pytest.mark.slow
def test_pbs_forgets_the_job(drill, tell, server):
    server.switch(history=False)
    drill.trains()
    job_id = drill.job_id()
    drill.order(1, "exit 7")
    drill.wait(
        lambda: job_id not in json.loads((server.folder / "table.json").read_text())["jobs"], "oblivion"
    )
    drill.reports("failed", who=1, exit_code=7)
    tell(drill.resumes(lost=1))
