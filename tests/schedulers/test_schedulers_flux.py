"""Flux: what it is asked, what its recorded answers mean, and that its ranks start."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from schedulers.sample import HOSTILE, HOSTILE_NAME, bash, head, interpreter, job, prepared, site
from schedulers.standin import install

from hpcdl.engine.ranks import discover
from hpcdl.errors import SchedulerError, SiteError, UsageError
from hpcdl.schedulers import flux, launch
from hpcdl.schedulers.base import After, JobState, Report, Scheduler
from hpcdl.schedulers.script import render
from hpcdl.shell import Completed

RECORDINGS = Path(__file__).parent / "recordings" / "flux"
(QUERY,) = flux.QUERIES


def recorded(name: str, exit_code: int = 0) -> Completed:
    """A recorded answer, decoded as hpcdl.shell decodes."""
    out, err = RECORDINGS / f"{name}.out", RECORDINGS / f"{name}.err"
    assert out.exists() or err.exists(), name
    texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in (out, err)]
    return Completed(exit_code, *texts)


def machine(**changes):
    return site("flux", "flux-run", **changes)


def test_directives_ask_for_everything_the_job_needs(tmp_path):
    sample = machine(
        partitions={"batch": {"kind": "queue", "name": "pbatch", "directives": ["--requires=hbm"]}},
        scheduler={"gpu_request": "gpus-per-task", "directives": ["--setattr=rdzv_get_en=0"]},
    )
    work = job(tmp_path, sample, nodes=3, ranks_per_node=4, walltime="2-01:02:03", account="physics")
    assert head(flux, work) == [
        "# flux: --job-name=sample-1",
        "# flux: --nodes=3",
        "# flux: --nslots=12",
        "# flux: --cores-per-slot=1",
        "# flux: --gpus-per-slot=1",
        "# flux: --exclusive",
        "# flux: --time-limit=176523s",
        "# flux: --queue=pbatch",
        "# flux: --bank=physics",
        "# flux: --output=logs/attempt-1/job.log",
        "# flux: --setattr=rdzv_get_en=0",
        "# flux: --requires=hbm",
    ]


def test_shared_nodes_are_not_asked_for_whole(tmp_path):
    sample = machine(partitions={"batch": {"shared": True}}, scheduler={"gpu_request": "gpus-per-task"})
    assert "# flux: --exclusive" not in head(flux, job(tmp_path, sample))


def test_devices_that_come_with_the_node_are_not_asked_for(tmp_path):
    sample = machine(scheduler={"gpu_request": "none"})
    lines = head(flux, job(tmp_path, sample))
    assert "# flux: --exclusive" in lines
    assert not any("gpu" in line for line in lines)


def test_instance_without_queues_is_not_asked_for_one(tmp_path):
    """One that a user started refuses the option."""
    assert "# flux: --queue=batch" in head(flux, job(tmp_path, machine()))
    without = machine(scheduler={"forbidden": ["--queue"]})
    assert not any("--queue" in line for line in head(flux, job(tmp_path, without)))


def test_bank_that_the_site_forbids_is_an_error(tmp_path):
    sample = machine(scheduler={"forbidden": ["--bank"]})
    with pytest.raises(SiteError, match="forbids --bank, but this job needs '--bank=physics'"):
        head(flux, job(tmp_path, sample, account="physics"))


def test_mandatory_account_is_asked_for(tmp_path):
    with pytest.raises(UsageError, match="takes no job without an account"):
        head(flux, job(tmp_path, machine(scheduler={"mandatory": ["account"]})))


@pytest.mark.parametrize(
    ("ending", "word"), [("ok", "afterok"), ("failed", "afternotok"), ("any", "afterany")]
)
def test_each_dependency_has_a_line(tmp_path, ending, word):
    work = replace(job(tmp_path, machine()), after=After(ending, ("fA", "fB")))
    lines = head(flux, work)
    assert lines[-2:] == [f"# flux: --dependency={word}:fA", f"# flux: --dependency={word}:fB"]


def test_path_in_which_flux_replaces_something_is_refused(tmp_path):
    """The folder is an argument of every rank, and {{id}} in it would be another folder."""
    with pytest.raises(UsageError, match=r"run folder .*\{\{id\}\}"):
        head(flux, job(tmp_path / "{{id}}", machine()))
    with pytest.raises(UsageError, match=r"interpreter /opt/\{\{name\}\}/python"):
        head(flux, job(tmp_path, machine(), python="/opt/{{name}}/python"))


def test_module_is_a_scheduler():
    backend: Scheduler = flux
    assert backend.submit(Path("/x y/job.sh")) == ["flux", "batch", "/x y/job.sh"]
    assert backend.cancel("fiFkbMhFM") == ["flux", "cancel", "fiFkbMhFM"]
    assert backend.QUERIES[0].command(["fA", "fB"]) == ["flux", "jobs", "--json", "fA", "fB"]
    assert backend.ELEMENTS is None


def test_submitted_gives_the_id_in_ascii():
    assert flux.submitted(recorded("batch-ok")) == "fiFkbMhFM"
    assert flux.submitted(Completed(0, "fiFkbMhFM\n", "")) == "fiFkbMhFM"
    assert flux.submitted(Completed(0, "a word of the site\nƒ2Ybq\n", "")) == "f2Ybq"


@pytest.mark.parametrize("answer", ["", "f\n", "fI0Ol\n", "submitted as ƒA.\n", "\x00"])
def test_submission_without_an_id_is_an_error(answer):
    with pytest.raises(SchedulerError, match="no job id"):
        flux.submitted(Completed(0, answer, ""))


def test_refusal_gives_fluxs_own_words():
    with pytest.raises(SchedulerError, match="'batch' is not a valid queue"):
        flux.submitted(recorded("batch-queue", 1))


RECORDED = {
    "jobs-running": ("fiFkbMhFM", Report(JobState.RUNNING, "RUN")),
    "jobs-pending": ("fiFxrykWs", Report(JobState.QUEUED, "SCHED")),
    "jobs-held": ("fiFsPiQD5", Report(JobState.QUEUED, "SCHED: held")),
    "jobs-canceled": ("fiFkbMhFM", Report(JobState.CANCELLED, "CANCELED: cancel")),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_job_is_understood(name):
    job_id, expected = RECORDED[name]
    assert QUERY.parse(recorded(name)) == {job_id: expected}


def test_several_jobs_stand_in_a_list_and_unknown_ones_in_stderr():
    """An unknown id makes flux jobs exit with 1 since version 0.80, and with 0 before."""
    jobs = [json.loads(recorded(name).stdout) for name in ("jobs-running", "jobs-held")]
    text = json.dumps({"jobs": jobs})
    for code in (0, 1):
        seen = QUERY.parse(Completed(code, text, recorded("jobs-unknown").stderr))
        assert set(seen) == {"fiFkbMhFM", "fiFsPiQD5"}


def test_unknown_job_is_absent():
    assert QUERY.parse(recorded("jobs-unknown", 1)) == {}
    assert QUERY.parse(recorded("jobs-unknown", 0)) == {}


def test_instance_that_is_away_is_an_error_and_no_end():
    with pytest.raises(SchedulerError, match="Unable to connect to Flux"):
        QUERY.parse(recorded("no-instance", 1))
    with pytest.raises(SchedulerError, match=r"no output, exit code 1\b"):
        QUERY.parse(Completed(1, "", ""))


@pytest.mark.parametrize(
    "garbage", ["<html>", "{", "[]", "3", '{"jobs": 3}', '{"jobs": [3]}', "null", "[" * 100_000]
)
def test_garbage_is_an_error_and_no_end(garbage):
    with pytest.raises(SchedulerError, match="something else than jobs"):
        QUERY.parse(Completed(0, garbage, ""))


@pytest.mark.parametrize("word", ["NEW", "DEPEND", "PRIORITY", "SCHED"])
def test_job_that_waits_is_queued(word):
    assert flux.report({"state": word}) == Report(JobState.QUEUED, word)


def test_what_a_job_waits_for_is_said():
    seen = flux.report({"state": "DEPEND", "dependencies": ["after-success=f2Ybq"], "urgency": 16})
    assert seen == Report(JobState.QUEUED, "DEPEND: after-success=f2Ybq")


@pytest.mark.parametrize("word", ["RUN", "CLEANUP"])
def test_job_on_its_nodes_is_running(word):
    assert flux.report({"state": word}).state is JobState.RUNNING


@pytest.mark.parametrize("job", [{"state": "LIMBO"}, {"state": "INACTIVE", "result": "LOST"}, {}])
def test_unknown_word_is_kept_and_is_no_end(job):
    seen = flux.report(job)
    assert seen.state is JobState.UNKNOWN
    assert seen.words == (job.get("result") or job.get("state", ""))
    assert not seen.state.over


ENDINGS = [
    ("COMPLETED", 0, "", Report(JobState.COMPLETED, "COMPLETED", 0)),
    ("FAILED", 7 << 8, "", Report(JobState.FAILED, "FAILED", 7)),
    ("FAILED", 137 << 8, "", Report(JobState.FAILED, "FAILED", 137)),
    ("FAILED", 9, "", Report(JobState.FAILED, "FAILED", None, 9)),
    ("FAILED", None, "exec", Report(JobState.FAILED, "FAILED: exec: why")),
    ("FAILED", 143 << 8, "node-failure", Report(JobState.NODE_FAILED, "FAILED: node-failure: why")),
    ("FAILED", None, "dependency", Report(JobState.CANCELLED, "FAILED: dependency: why")),
    ("FAILED", 142 << 8, "", Report(JobState.TIMEOUT, "FAILED")),
    ("TIMEOUT", 142 << 8, "timeout", Report(JobState.TIMEOUT, "TIMEOUT: timeout: why")),
    ("CANCELED", None, "cancel", Report(JobState.CANCELLED, "CANCELED: cancel: why")),
]


@pytest.mark.parametrize(("result", "status", "kind", "expected"), ENDINGS)
def test_ended_job_is_told_by_its_result_its_exception_and_its_wait_status(result, status, kind, expected):
    exception = {"occurred": bool(kind), "type": kind, "note": "why"} if kind else {"occurred": False}
    fields = {"state": "INACTIVE", "result": result, "exception": exception}
    assert flux.report(fields | ({} if status is None else {"waitstatus": status})) == expected


def test_cancelling_a_job_that_is_over_is_no_error():
    flux.cancelled(Completed(0, "", ""))
    flux.cancelled(recorded("cancel-unknown", 1))


def test_cancelling_that_fails_gives_fluxs_own_words():
    with pytest.raises(SchedulerError, match="guests can only raise exceptions on their own jobs"):
        flux.cancelled(
            Completed(1, "", "flux-cancel: ERROR: fA: guests can only raise exceptions on their own jobs\n")
        )


def test_ranks_are_started_by_flux_run(tmp_path):
    sample = machine(launch={"cpu_bind": "per-task", "arguments": ["-ompibind=omp_places -u"]})
    words = launch.command(job(tmp_path, sample, nodes=2, ranks_per_node=4, python="python"))
    assert words == [
        *("flux", "run", "--nodes=2", "--ntasks=8", "--cores-per-task=1", "--gpus-per-task=1", "--label-io"),
        *("--setopt=exit-on-error", "--setopt=exit-timeout=none", "--setopt=cpu-affinity=per-task"),
        *("-ompibind=omp_places", "-u", "python", "-m", "hpcdl.engine", str(tmp_path)),
    ]


def test_whole_nodes_and_a_device_a_rank_are_asked_of_flux_run_itself(tmp_path):
    sample = machine(launch={"gpu_visibility": "one_per_task"}, scheduler={"gpu_request": "none"})
    words = launch.command(job(tmp_path, sample))
    assert "--exclusive" in words
    assert "--setopt=gpu-affinity=per-task" in words
    assert "bash" not in words


def test_order_of_devices_is_told_to_flux_run(tmp_path):
    sample = machine(
        launch={"gpu_visibility": "one_per_task", "device_order": [3, 2, 1, 0]},
        scheduler={"gpu_request": "none"},
    )
    assert "--setopt=gpu-affinity=map:3;2" in launch.command(job(tmp_path, sample))


def test_instances_are_asked_apart(monkeypatch):
    """What one knows of a job, another does not."""
    monkeypatch.delenv("FLUX_URI", raising=False)
    assert flux.controller("fA") == ""
    monkeypatch.setenv("FLUX_URI", "local:///tmp/flux-x/local-0")
    assert flux.controller("fA") == "local:///tmp/flux-x/local-0"


def test_hostile_text_arrives_in_every_rank_that_flux_run_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", install(tmp_path, "flux"))
    folder = prepared(tmp_path / HOSTILE_NAME)
    body = (
        f'for n in {" ".join(HOSTILE)}; do printf "%s=%s\\0" "$n" "${{!n}}"; done '
        f'>"{tmp_path}/seen-$FLUX_TASK_RANK"; printf %s "${{@: -1}}" >"{tmp_path}/folder-$FLUX_TASK_RANK"; '
        f'env -0 >"{tmp_path}/environment-$FLUX_TASK_RANK"'
    )
    work = job(folder.path, machine(), nodes=2, python=interpreter(tmp_path, body), environment=HOSTILE)
    assert bash(render(work), folder.path).returncode == 0
    for rank in range(4):
        seen = (tmp_path / f"seen-{rank}").read_bytes()
        assert seen == "".join(f"{name}={value}\0" for name, value in HOSTILE.items()).encode()
        assert (tmp_path / f"folder-{rank}").read_bytes() == str(folder.path).encode()
        pairs = (tmp_path / f"environment-{rank}").read_text().split("\0")
        place = discover(dict(pair.split("=", 1) for pair in pairs if pair), 4)
        assert (place.rank, place.local_rank) == (rank, rank % 2)
    assert not list(tmp_path.rglob("pwned*"))


def test_exit_code_of_a_rank_is_that_of_the_job(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", install(tmp_path, "flux"))
    folder = prepared(tmp_path / "run")
    python = interpreter(tmp_path, "exit $((FLUX_TASK_RANK ? 7 : 0))")
    assert bash(render(job(folder.path, machine(), python=python)), folder.path).returncode == 7
    assert json.loads(folder.job_exit(1).read_text()) == {"exit_code": 7}
