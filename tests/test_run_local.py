"""The main job on this machine: real processes, real files, the command line as a user types it."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from processes import running

from hpcdl.errors import HpcdlError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics, store
from hpcdl.runs.record import RunState
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.states import following
from hpcdl.workflow.studies import preparing, studying

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
VISION = QUICKSTART.with_name("vision.yaml")
SPEC = (Path(__file__).parent / "tiny.yaml").read_text()


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    path = tmp_path / "tiny.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def hpcdl(tmp_path):
    """Run ``hpcdl ARGS`` as a process of its own; what it leaves running is cancelled at the end."""
    environment = os.environ | {"HPCDL_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    environment.pop("HPCDL_SITE", None)

    def call(*args, **options):
        command = [sys.executable, "-m", "hpcdl", *map(str, args)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=250, check=False, **options
        )

    call.environment = environment
    yield call
    for folder in store.all_runs(tmp_path / "runs"):
        with suppress(HpcdlError):  # nobody submitted it, or it is over already
            submitting.cancel(folder)


def folder_of(answer):
    return RunFolder(Path(json.loads(answer.stdout)["path"]))


def losses(folder, rank=0):
    return [record.loss for record in metrics.steps(folder, rank)]


def wait_until(condition, what, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)


def test_submit_trains_and_everything_told_of_it_is_true(hpcdl, spec, tmp_path):
    answer = hpcdl("submit", spec, "--wait", "--json")
    assert answer.returncode == 0, answer.stderr
    folder = folder_of(answer)
    assert folder.experiment.read_text() == SPEC
    assert losses(folder)[-1] < losses(folder)[0]
    assert losses(folder, 0) == losses(folder, 1)

    told = json.loads(hpcdl("status", "last", "--json").stdout)
    assert (told["state"], told["step"], told["steps"]) == ("completed", 6, 6)
    assert told["first_failure"] is None
    assert told["attempts"][0]["exit_code"] == 0
    assert told["last_loss"] == losses(folder)[-1]
    assert 0 < told["mfu"] == told["hfu"] < 1
    assert sum(told["spent"].values()) == pytest.approx(1)
    screen = hpcdl("status", "last").stdout
    assert f"MFU {told['mfu']:.1%}; time of rank 0: " in screen
    assert f"compute {told['spent']['compute']:.0%}" in screen

    (row,) = json.loads(hpcdl("list", "--json").stdout)
    assert (row["run"], row["state"]) == (folder.path.name, "completed")

    assert "rank 1 |" in hpcdl("logs", "last", "--all").stdout
    assert "rank 0 |" not in hpcdl("logs", "last", "--rank", "1").stdout
    said = [json.loads(line) for line in hpcdl("logs", "last", "--json").stdout.splitlines()]
    steps = [line for line in said if " step " in line["text"]]
    assert [line["time"] for line in steps] == sorted(line["time"] for line in steps)
    assert Counter(line["rank"] for line in steps) == {0: 6, 1: 6}
    assert len(hpcdl("logs", "last", "--grep", r"step \d+ loss", "--rank", "0").stdout.splitlines()) == 6

    packed = tmp_path / "r.tar.gz"
    assert hpcdl("collect", "last", "--output", packed).returncode == 0
    with tarfile.open(packed) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"resolved.json", "job.sh", "metrics/rank-00001.jsonl", "exits/attempt-1/job.json"} <= names
    assert {"INDEX.txt", "index.json", "collected/status.json", "collected/versions.json"} <= names


def test_what_the_shell_keeps_secret_is_not_in_the_archive(hpcdl, spec, tmp_path):
    spec.write_text(SPEC.replace("name: tiny", "name: tiny-hunter22"))
    folder = folder_of(hpcdl("submit", spec, "--wait", "--json", "--set", "training.steps=1"))
    hpcdl.environment["MY_SERVICE_PASSWORD"] = "hunter22"
    packed = tmp_path / "r.tar.gz"
    told = hpcdl("collect", folder.path, "--output", packed).stdout
    assert "secrets were taken out; INDEX.txt in it says where" in told
    with tarfile.open(packed) as archive:
        texts = [archive.extractfile(entry).read() for entry in archive if entry.isfile()]
    assert not [text for text in texts if b"hunter22" in text]
    assert "hunter22" in folder.experiment.read_text()


@pytest.mark.slow
def test_two_ranks_train_the_curve_of_one(hpcdl, spec):
    two = folder_of(hpcdl("submit", spec, "--wait", "--json"))
    one = folder_of(hpcdl("submit", spec, "--wait", "--json", "--gpus", "1", "--set", "parallelism.data=1"))
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.slow
def test_the_example_on_four_ranks_trains_the_curve_of_one(hpcdl):
    """The quickstart as a newcomer types it, shortened; the planner must combine two axes."""
    few = ("--set", "training.steps=20", "--wait", "--json")
    four = folder_of(hpcdl("submit", QUICKSTART, *few))
    one = folder_of(hpcdl("submit", QUICKSTART, *few, "--gpus", "1"))
    chosen = store.resolved(four).decomposition
    assert chosen.ranks == 4
    assert sum(degree > 1 for degree in chosen.degrees) == 2
    assert losses(four) == pytest.approx(losses(one), rel=1e-5)
    assert losses(four)[-1] < 0.7 * losses(four)[0]


FEW_IMAGES = ("--set", "training.steps=12", "--set", "evaluation={every: 12, sequences: 128}")


@pytest.mark.slow
def test_the_example_of_a_model_of_ones_own_learns_and_is_evaluated(hpcdl):
    folder = folder_of(hpcdl("submit", VISION, *FEW_IMAGES, "--wait", "--json"))
    assert store.resolved(folder).decomposition.ranks == 4
    assert losses(folder)[-1] < 0.8 * losses(folder)[0]
    assert metrics.steps(folder)[-1].validation_loss < 0.8 * losses(folder)[0]


@pytest.mark.slow
def test_the_example_of_a_model_of_ones_own_trains_the_curve_of_one(hpcdl):
    """Initial weights are drawn by each rank for its own layers only."""
    four, one = (
        folder_of(hpcdl("submit", VISION, *FEW_IMAGES, "--wait", "--json", *settings))
        for settings in ((), ("--gpus", "1", "--set", "parallelism={microbatch: 16}"))
    )
    assert losses(four) == pytest.approx(losses(one), rel=1e-4)
    found, wanted = (metrics.steps(folder)[-1].validation_loss for folder in (four, one))
    assert found == pytest.approx(wanted, rel=1e-4)


def test_a_hostile_name_never_reaches_a_shell(hpcdl, spec, tmp_path):
    name = "it's $(touch pwned) `touch pwned`; touch pwned \"\n touch pwned"
    spec.write_text(SPEC.replace("name: tiny", f"name: {json.dumps(name)}"))
    answer = hpcdl("submit", spec, "--wait", "--json", "--set", "training.steps=1", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert not list(tmp_path.rglob("pwned"))
    assert store.resolved(folder_of(answer)).experiment.name == name


def test_ctrl_c_while_following_detaches_and_the_job_goes_on(hpcdl, spec, tmp_path):
    endless = ("--set", "training.steps=100000")
    command = [sys.executable, "-m", "hpcdl", "submit", str(spec), "--follow", *endless]
    runs, pipe = tmp_path / "runs", subprocess.PIPE
    with running(command, env=hpcdl.environment, stdout=pipe, stderr=pipe) as follower:
        wait_until(lambda: list(runs.glob("*/metrics/rank-00000.jsonl")), "the first step")
        follower.send_signal(signal.SIGINT)
        out, err = follower.communicate(timeout=60)
    assert "detached" in out, err
    (folder,) = store.all_runs(runs)
    reached = len(metrics.steps(folder))
    wait_until(lambda: len(metrics.steps(folder)) > reached + 20, "further steps")
    assert following.refresh([folder])[0].state is RunState.RUNNING
    assert hpcdl("cancel", "last").returncode == 0
    wait_until(lambda: following.refresh([folder])[0].state.over, "the end of the run")


def test_cancel_ends_a_run_and_says_cancelled(hpcdl, spec):
    folder = folder_of(hpcdl("submit", spec, "--json", "--set", "training.steps=100000"))
    wait_until(lambda: metrics.steps(folder), "the first step")
    assert hpcdl("cancel", "last").returncode == 0
    wait_until(lambda: following.refresh([folder])[0].state.over, "the end of the run")
    told = json.loads(hpcdl("status", "last", "--json").stdout)
    assert told["state"] == "cancelled"
    assert "already over" in hpcdl("cancel", "last").stdout


def prepared(spec, tmp_path, *settings):
    study = studying.study(studying.Request(spec, settings=settings))
    return preparing.prepare(study, tmp_path / "runs")[0]


def test_a_rank_that_raises_is_named_and_the_others_are_torn_down(hpcdl, spec, tmp_path):
    folder = prepared(spec, tmp_path, "training.steps=100000")
    folder.rank_metrics(1).mkdir()  # rank 1 cannot write its metrics
    submitting.submit([folder])
    wait_until(lambda: following.refresh([folder])[0].state.over, "the end of the run")
    told = json.loads(hpcdl("status", "last", "--json").stdout)
    assert told["state"] == "failed"
    assert told["first_failure"]["rank"] == 1
    assert "IsADirectoryError" in told["first_failure"]["reason"]
    assert told["first_failure"]["log"] == str(folder.rank_log(1, 1))
    assert "IsADirectoryError" in folder.rank_log(1, 1).read_text()


def test_follow_of_a_failing_run_shows_the_culprits_last_lines_and_exits_5(hpcdl, spec, tmp_path):
    (tmp_path / "corpus.txt").write_text("too short")
    answer = hpcdl("submit", spec, "--follow")
    assert answer.returncode == 5
    assert "last lines of" in answer.stderr
    assert "sequence" in answer.stderr


def processes_of(folder, rank):
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            b"hpcdl.engine" in command
            and str(folder.path).encode() in command
            and b"RANK=%d" % rank in environment
        ):
            yield int(entry.name)


def test_a_rank_killed_from_outside_is_found_out(hpcdl, spec, tmp_path):
    """kill -9 leaves the rank no time for a record; its peers' lost connections must not take the blame alone."""
    folder = prepared(spec, tmp_path, "training.steps=100000")
    submitting.submit([folder])
    wait_until(lambda: metrics.steps(folder), "the first step")
    for pid in processes_of(folder, 1):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: following.refresh([folder])[0].state.over, "the end of the run")
    told = json.loads(hpcdl("status", "last", "--json").stdout)
    assert told["state"] == "failed"
    assert told["first_failure"]["rank"] == 1
    assert told["first_failure"]["signal"] == signal.SIGKILL


def test_resume_continues_from_the_newest_checkpoint(hpcdl, spec, tmp_path):
    answer = hpcdl("submit", spec, "--json", "--set", "training.steps=200", "--set", "checkpoint.every=5")
    folder = folder_of(answer)
    wait_until(lambda: list(folder.checkpoints.glob("[0-9]*")), "the first checkpoint")
    submitting.cancel(folder)  # at once: another process would start for seconds, while this one trains
    wait_until(lambda: following.refresh([folder])[0].state.over, "the end of the run")
    reached = metrics.steps(folder)[-1].step
    assert reached < 200
    assert hpcdl("resume", "last", "--follow").returncode == 0
    records = metrics.steps(folder)
    assert [record.step for record in records] == list(range(1, 201))
    told = json.loads(hpcdl("status", "last", "--json").stdout)
    assert [attempt["state"] for attempt in told["attempts"]] == ["cancelled", "completed"]
    assert hpcdl("resume", "last").returncode == 2


@pytest.mark.slow
def test_exported_weights_are_what_another_run_starts_from(hpcdl, spec, tmp_path):
    """Through the Hugging Face layout and back; the second run's path is relative to its experiment file."""
    assert hpcdl("submit", spec, "--wait", "--set", "checkpoint.every=6").returncode == 0
    exported = hpcdl("export", "last", tmp_path / "weights", "--step", "6")
    assert (exported.returncode, exported.stdout) == (0, f"step 6 written to {tmp_path / 'weights'}\n")
    again = hpcdl("export", "last", tmp_path / "weights")
    assert again.returncode == 5
    assert f"error: {tmp_path / 'weights'} exists already\n  give the name" in again.stderr
    answer = hpcdl("submit", spec, "--wait", "--json", "--set", "checkpoint.start=weights")
    assert answer.returncode == 0, answer.stderr
    fresh = losses(RunFolder(next(iter(sorted((tmp_path / "runs").iterdir())))))
    assert losses(folder_of(answer))[0] < fresh[0] - 0.5


def test_an_impossible_decomposition_is_refused_by_the_engine_too(hpcdl, spec, tmp_path):
    """Nothing may run silently in another shape: a resolved.json changed by hand is refused by name."""
    folder = prepared(spec, tmp_path)
    resolved = json.loads(folder.resolved.read_text())
    resolved["decomposition"] |= {"data": 1, "x": 2, "recompute": "full", "recompute_every": 99}
    resolved["experiment"]["model"] |= {"heads": 1, "kv_heads": 1}
    folder.resolved.write_text(json.dumps(resolved))
    submitting.submit([folder])
    wait_until(lambda: following.refresh([folder])[0].state.over, "the end of the run")
    reason = json.loads(hpcdl("status", "last", "--json").stdout)["first_failure"]["reason"]
    assert "kv_heads 1 is not divisible by x 2" in reason
    assert "recompute_every 99 is more than the model's" in reason
