"""What happens to a run from beside it: its disk, its ports, its neighbours, its clock, its own files."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sysconfig
import venv
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from cluster.breaking import nothing_starts
from disks import begin_page, fill, fill_page, small_disk
from reliability.drill import Drill
from reliability.rows import scenario

from hpcdl.runs import store

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
slurm = partial(scenario, "Slurm")


@slurm("two jobs on one node", "two runs at once on the same two nodes, and both end well")
def test_two_jobs_on_one_node(drill, tell, cluster, tmp_path):
    half = tmp_path / "half.yaml"  # of the cores of a node, so that two jobs fit
    half.write_text(Path(drill.variables["HPCDL_SITE"]).read_text().replace("cores: 8", "cores: 4"))
    drill.variables["HPCDL_SITE"] = str(half)
    other = Drill(tmp_path / "other", drill.variables)
    drill.trains()
    other.trains()
    places = {cluster.run("squeue", "-h", "-o", "%N", "-j", each.job_id()).stdout for each in (drill, other)}
    assert places == {"n[1-2]\n"}
    other.completes(then="undisturbed")
    tell(drill.completes(then="undisturbed"))


@slurm(
    "port occupied on the node of rank 0",
    "what an earlier start left says where to meet; a stranger listens there, and rank 1 comes to him first",
)
def test_port_is_occupied(drill, tell, cluster):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        with nothing_starts(cluster):
            drill.submit()
            meeting = drill.folder.rendezvous(1)
            meeting.parent.mkdir(exist_ok=True)
            port = stranger.getsockname()[1]
            meeting.write_text(f'{{"address": "127.0.0.1", "port": {port}, "key": "of another run"}}\n')
        drill.wait(lambda: drill.processes_of(0) != [], "rank 0")
        with stopped(drill.process(0)):  # it would write where it really is
            stranger.settimeout(120)
            guest, _ = stranger.accept()  # rank 1, which believed it
        with guest:
            row = drill.completes(then="undisturbed")
    assert json.loads(meeting.read_text())["port"] != port
    tell(row)


@contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@slurm("unknown host name", "the site file gives host names a suffix that no name server knows")
def test_a_name_does_not_resolve(drill, tell, tmp_path):
    right = drill.variables["HPCDL_SITE"]
    wrong = tmp_path / "wrong.yaml"
    rule = "rendezvous: {address: hostname, suffix: .nowhere.invalid, timeout_seconds: 60}"
    wrong.write_text(re.sub("rendezvous: .*", rule, Path(right).read_text()))
    drill.variables["HPCDL_SITE"] = str(wrong)
    drill.submit()
    told = drill.reports("failed", who=0, exit_code=1, cause="rank never came")
    assert ".nowhere.invalid" in told["cause"]["words"]
    drill.variables["HPCDL_SITE"] = right
    drill.submit()
    tell(drill.completes(then="submitted anew"))


@slurm(
    "disk full",
    "no room is left where the run folder is, in step 8, not even in the page of rank 0's metrics",
)
def test_a_full_disk(drill, tell):
    """With room in that page it once came to its last step, and only the last checkpoint found none."""
    drill.runs.mkdir()
    with small_disk(drill.runs, "4m"):
        drill.trains()
        ballast = drill.runs / "ballast"
        begin_page(drill.folder.rank_metrics(1))
        fill(ballast)
        fill_page(drill.folder.rank_metrics(0))
        drill.let_go()
        drill.wait(lambda: not drill.processes(), "the end of the ranks")
        ballast.unlink()
        drill.reports("failed", who=0, exit_code=1, cause="disk full")
        assert drill.saved() == 6
        row = drill.resumes(lost=drill.done - 6)  # it ends in the step whose record the disk does not take
        tell(replace(row, lost="all after 6"))


@slurm(
    "torn at every file boundary",
    "of the newest nine each misses another file, or it is empty or cut in half",
)
def test_checkpoints_are_torn(drill, tell, cluster):
    drill.shape = ("parallelism.zero=1",)  # so that both ranks write
    drill.submit("checkpoint.every=1", "checkpoint.keep=20")
    drill.hold(after=11)
    drill.wait(lambda: drill.saved() == 11, "the checkpoint of step 11")
    cluster.run("scancel", drill.job_id())
    drill.reports("cancelled", exit_code=143, cause="cancelled")
    newest, whole = (drill.folder.checkpoints / str(step) for step in (11, 2))
    files = [
        "manifest.json",
        *(each["file"] for each in json.loads((newest / "manifest.json").read_text())["shards"]),
    ]
    assert len(files) == 3
    for path in whole.iterdir():  # what ranks left for the manifest, which has it all
        if path.name not in files:
            path.unlink()
    damages = [(file, damage) for file in files for damage in (Path.unlink, empty, halve)]
    for step, (file, damage) in zip(range(11, 0, -1), damages, strict=False):
        damage(drill.folder.checkpoints / str(step) / file)
    row = drill.resumes(lost=9)
    passed = [(event.detail["step"], event.detail["file"]) for event in drill.events("checkpoint damaged")]
    assert passed == [(11 - number, file) for number, (file, _) in enumerate(damages)]
    tell(row)


def empty(path):
    path.write_bytes(b"")


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@slurm(
    "clock skew", "the clock of the login node is five minutes ahead of that of the nodes, then five behind"
)
@pytest.mark.skipif(
    shutil.which("faketime") is None, reason="NO CLOCK SKEW TESTED: faketime is not installed"
)
def test_clocks_differ(drill, tell, tmp_path):
    own = (
        tmp_path / "own.yaml"
    )  # what makes the clock wrong is handed on to the job: the nodes have the right time
    site = Path(drill.variables["HPCDL_SITE"]).read_text()
    own.write_text(f"{site}\nsoftware: {{setup: ['unset LD_PRELOAD FAKETIME FAKETIME_SHARED']}}\n")
    drill.variables["HPCDL_SITE"] = str(own)
    drill.clock = "+5m"
    drill.trains()
    assert drill.status()["state"] == "running"
    drill.order(1, "exit 7")
    drill.reports("failed", who=1, exit_code=7)
    drill.clock = "-5m"
    row = drill.resumes(lost=1)
    submitted, started = (
        {event.attempt: event.time for event in events if event.kind == kind}
        for kind, events in (("submitted", store.events(drill.folder)), ("started", drill.events("started")))
    )
    assert submitted[1] - started[1] > 120  # seconds: less than 300, as the job takes a while to start
    assert submitted[2] - started[2] < -290
    tell(row)


@slurm("run folder moved while it waits", "renamed before the job starts")
def test_folder_is_moved_while_pending(drill, tell, cluster):
    with nothing_starts(cluster):
        drill.submit()
        drill.move()
    drill.reports("failed", exit_code=15, cause="no run folder")
    tell(drill.resumes(lost=0))


@slurm("run folder moved in training", "renamed in step 8")
def test_folder_is_moved_while_running(drill, tell):
    """Seldom one rank had ended the other before it failed by itself, and srun's 143 was told, of nobody."""
    drill.trains()
    before = drill.folder.path
    drill.move()
    drill.let_go()
    drill.wait(drill.over, "its end")
    drill.stands("failed", who=drill.first_to_end(), exit_code=1, cause="no run folder")
    drill.seen[1] = "either"  # both fail at the same time
    assert not before.exists()
    tell(drill.resumes(lost=1))


def linked_environment(folder):
    """A virtual environment with the packages of this one."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        (packages / package.name).symlink_to(package)
    return folder


@pytest.fixture
def environment(drill, tmp_path):
    """A Python environment of the run's own."""
    own, site = tmp_path / "own.yaml", Path(drill.variables["HPCDL_SITE"]).read_text()
    place = linked_environment(tmp_path / "environment")
    own.write_text(f"{site}\nsoftware: {{python: {place / 'bin' / 'python'}}}\n")
    drill.variables["HPCDL_SITE"] = str(own)
    return place


@slurm("Python environment deleted", "in step 8: what it needs from there it has loaded before")
def test_environment_is_deleted_under_a_running_job(drill, tell, environment):
    drill.trains()
    shutil.rmtree(environment)
    tell(drill.completes(then="undisturbed"))


@slurm(
    "no Python where it goes on",
    "the environment is deleted after a scancel, and made again after an attempt without it",
)
def test_environment_is_deleted_between_attempts(drill, tell, cluster, environment):
    drill.trains()
    cluster.run("scancel", drill.job_id())
    drill.reports("cancelled", exit_code=143, cause="cancelled")
    shutil.rmtree(environment)
    assert drill.hpcdl("resume", drill.folder.path).returncode == 0
    drill.reports("failed", exit_code=2, cause="program not found")
    linked_environment(environment)
    tell(drill.resumes(lost=1))
