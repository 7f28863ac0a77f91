"""Slurm: what it is asked, and what its answers mean. tests/cluster asks a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
from schedulers.sample import job, site

from hpcdl.errors import SchedulerError, SiteError, UsageError
from hpcdl.schedulers import slurm
from hpcdl.schedulers.base import JobState, Report, Scheduler
from hpcdl.shell import Completed

SQUEUE, SCONTROL, SACCT = slurm.QUERIES
JOB_LINE = "JobId=1 JobName=x Account=(null) JobState={} Reason={} Dependency=(null) ExitCode={} WorkDir=/a b"


def said(stdout: str = "", stderr: str = "", exit_code: int = 0) -> Completed:
    return Completed(exit_code, stdout, stderr)


@pytest.mark.parametrize(
    ("text", "job_id"), [("123\n", "123"), ("123;main\n", "123;main"), ("5;a-b.c", "5;a-b.c")]
)
def test_submitted_keeps_the_cluster(text, job_id):
    assert slurm.submitted(said(text)) == job_id


@pytest.mark.parametrize("text", ["", "Submitted batch job 5\nnonsense", "12a"])
def test_submission_without_an_id_is_an_error(text):
    with pytest.raises(SchedulerError, match="no job id"):
        slurm.submitted(said(text))


def test_refusal_gives_sbatchs_own_words():
    with pytest.raises(SchedulerError, match="Invalid account"):
        slurm.submitted(said(stderr="sbatch: error: Invalid account or partition", exit_code=1))


def test_every_later_command_names_the_cluster():
    assert slurm.cancel("7;east") == ["scancel", "--clusters=east", "7"]
    assert "--clusters=east" in SQUEUE.command(["7;east"])
    assert "--clusters=east" in SACCT.command(["7;east"])
    assert SQUEUE.parse(said("7;east|RUNNING|None\n")) == {"7;east": Report(JobState.RUNNING, "RUNNING")}


def test_jobs_of_several_clusters_are_asked_for_in_one_command():
    program, option, line = SQUEUE.command(["1", "2;east", "3"])
    assert (program, option) == ("bash", "-c")
    assert "--jobs=1,3" in line.split(";")[0]
    assert "--clusters=east" in line


STATES = {
    ("PENDING", "Priority", "0:0"): Report(JobState.QUEUED, "PENDING (Priority)"),
    ("RUNNING", "None", "0:0"): Report(JobState.RUNNING, "RUNNING"),
    ("COMPLETING", "None", "0:0"): Report(JobState.RUNNING, "COMPLETING"),
    ("REQUEUED", "BeginTime", "0:0"): Report(JobState.QUEUED, "REQUEUED (BeginTime)"),
    ("COMPLETED", "None", "0:0"): Report(JobState.COMPLETED, "COMPLETED", 0),
    ("FAILED", "NonZeroExitCode", "7:0"): Report(JobState.FAILED, "FAILED (NonZeroExitCode)", 7),
    ("FAILED", "RaisedSignal:15", "0:15"): Report(JobState.FAILED, "FAILED (RaisedSignal:15)", None, 15),
    ("CANCELLED by 1000", "", "0:0"): Report(JobState.CANCELLED, "CANCELLED by 1000"),
    ("CANCELLED+", "", "0:15"): Report(JobState.CANCELLED, "CANCELLED+", None, 15),
    ("TIMEOUT", "TimeLimit", "0:0"): Report(JobState.TIMEOUT, "TIMEOUT (TimeLimit)"),
    ("NODE_FAIL", "None", "0:15"): Report(JobState.NODE_FAILED, "NODE_FAIL", None, 15),
    ("OUT_OF_MEMORY", "OutOfMemory", "0:125"): Report(
        JobState.OUT_OF_MEMORY, "OUT_OF_MEMORY (OutOfMemory)", None, 125
    ),
    ("PREEMPTED", "None", "0:0"): Report(JobState.PREEMPTED, "PREEMPTED"),
    ("NEW_WORD", "None", "0:0"): Report(JobState.UNKNOWN, "NEW_WORD"),
}


@pytest.mark.parametrize("answer", STATES)
def test_state_comes_first_and_the_code_only_where_the_job_chose_it(answer):
    assert slurm.report(*answer) == STATES[answer]


def test_unknown_word_is_no_end():
    assert not slurm.report("NEW_WORD").state.over


def test_squeue_answers_for_jobs_that_are_not_over_and_leaves_the_rest_to_scontrol():
    found = SQUEUE.parse(said("1|PENDING|a|b\n2|COMPLETED|None\n3|CANCELLED by 0|None\n"))
    assert found == {"1": Report(JobState.QUEUED, "PENDING (a|b)")}


def test_scontrol_tells_how_a_job_ended():
    text = f"1;east {JOB_LINE.format('FAILED', 'NonZeroExitCode', '3:0')}\n2 \n"
    seen = SCONTROL.parse(said(text, "slurm_load_jobs error: Invalid job id specified\n"))
    assert seen == {"1;east": Report(JobState.FAILED, "FAILED (NonZeroExitCode)", 3)}


def test_path_that_looks_like_a_field_is_not_taken_for_one():
    line = JOB_LINE.format("RUNNING", "None", "0:0") + " JobState=FAILED/x"
    assert SCONTROL.parse(said(f"1 {line}\n"))["1"].state is JobState.RUNNING


def test_sacct_answers_under_both_names_of_a_job():
    seen = SACCT.parse(said("12|east|CANCELLED by 1000|0:15\n"))
    assert set(seen) == {"12", "12;east"}
    assert seen["12"].state is JobState.CANCELLED


def test_no_accounting_means_that_nothing_is_known():
    assert SACCT.parse(said(stderr="Slurm accounting storage is disabled\n", exit_code=1)) == {}


@pytest.mark.parametrize("query", [SQUEUE, SCONTROL])
def test_unknown_job_is_absent(query):
    assert query.parse(said("", "slurm_load_jobs error: Invalid job id specified\n", 1)) == {}


@pytest.mark.parametrize("query", [SQUEUE, SCONTROL])
def test_controller_that_is_away_is_an_error_and_no_end(query):
    words = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    with pytest.raises(SchedulerError, match="Unable to contact slurm controller"):
        query.parse(said("", words, 1))


def test_cancelled_knows_a_job_that_was_over_from_a_refusal():
    slurm.cancelled(said())
    slurm.cancelled(
        said(
            stderr="scancel: error: Kill job error on job id 5: Job/step already completing or completed",
            exit_code=1,
        )
    )
    with pytest.raises(SchedulerError, match="Access/permission denied"):
        slurm.cancelled(said(stderr="scancel: error: Access/permission denied", exit_code=1))


def test_directives_ask_for_everything_the_job_needs(tmp_path):
    machine = site(
        partitions={"batch": {"kind": "qos", "name": "regular", "constraint": "gpu&hbm80g"}},
        scheduler={"directives": ["--exclusive"]},
    )
    work = job(tmp_path, machine, nodes=3, ranks_per_node=4, walltime="2-01:02:03", account="physics")
    assert slurm.directives(work) == [
        "#SBATCH --job-name=sample-1",
        "#SBATCH --nodes=3",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --time=2-01:02:03",
        "#SBATCH --qos=regular",
        "#SBATCH --constraint=gpu&hbm80g",
        "#SBATCH --account=physics",
        "#SBATCH --output=logs/attempt-1/job.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --no-requeue",
        "#SBATCH --exclusive",
    ]


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"gpu_request": "gres"}, "#SBATCH --gres=gpu:2"),
        ({"gpu_request": "gres-typed", "gpu_type": "a100"}, "#SBATCH --gres=gpu:a100:2"),
        ({"gpu_request": "gpus-per-node"}, "#SBATCH --gpus-per-node=2"),
    ],
)
def test_gpus_are_asked_for_as_the_site_spells_it(tmp_path, asked, line):
    assert line in slurm.directives(job(tmp_path, site(scheduler=asked)))


def test_nothing_is_asked_for_where_nodes_come_with_their_gpus(tmp_path):
    lines = slurm.directives(job(tmp_path, site(scheduler={"gpu_request": "none"})))
    assert not any("gpu" in line or "gres" in line for line in lines)


def test_typed_request_without_a_type_is_refused(tmp_path):
    with pytest.raises(SiteError, match=r"needs scheduler.gpu_type"):
        slurm.directives(job(tmp_path, site(scheduler={"gpu_request": "gres-typed"})))


def test_forbidden_directive_is_left_out_where_the_job_is_right_without_it(tmp_path):
    lines = slurm.directives(job(tmp_path, site(scheduler={"forbidden": ["--open-mode", "--no-requeue"]})))
    assert not any("open-mode" in line or "requeue" in line for line in lines)


def test_forbidden_directive_that_the_job_needs_is_an_error(tmp_path):
    machine = site(scheduler={"gpu_request": "gres", "forbidden": ["--gres=gpu"]})
    with pytest.raises(SiteError, match="forbids --gres, but this job needs '--gres=gpu:2'"):
        slurm.directives(job(tmp_path, machine))


@pytest.mark.parametrize("line", ["exclusive", "#SBATCH --exclusive", "--comment=a#b"])
def test_site_directive_that_sbatch_would_cut_short_is_refused(tmp_path, line):
    with pytest.raises(SiteError, match="is not a directive"):
        slurm.directives(job(tmp_path, site(scheduler={"directives": [line]})))


def test_constraint_with_a_blank_is_refused(tmp_path):
    with pytest.raises(SiteError, match="constraint 'a b'"):
        slurm.directives(job(tmp_path, site(partitions={"batch": {"constraint": "a b"}})))


@pytest.mark.parametrize("name", ["a%j", "100%%", "back\\slash"])
def test_run_folder_that_slurm_would_rewrite_is_refused(name):
    """Such a job failed on a real Slurm with exit code 1 and not a word."""
    with pytest.raises(UsageError, match="Slurm replaces"):
        slurm.directives(job(Path("/runs") / name, site()))


def test_run_id_that_is_no_word_is_refused(tmp_path):
    with pytest.raises(SchedulerError, match="cannot be a job name"):
        slurm.directives(job(tmp_path, site(), run="a\n#SBATCH --nodes=99"))


def test_module_is_a_scheduler():
    backend: Scheduler = slurm
    assert backend.submit(Path("/x/job.sh")) == ["sbatch", "--parsable", "/x/job.sh"]
