"""Slurm: what it is asked, and what its answers mean. tests/cluster asks a real one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from schedulers.sample import head, job, site

from hpcdl.errors import NoAnswerError, SchedulerError, SiteError, UsageError
from hpcdl.schedulers import launch, slurm, slurm_jobs
from hpcdl.schedulers.base import After, Array, JobState, Report, Scheduler
from hpcdl.shell import Completed

SQUEUE, SACCT = slurm.QUERIES


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


def test_answers_bear_the_id_with_its_cluster():
    """squeue pads the number, then prints what we gave it: recorded on 22.05 with JobArrayID:40;east|."""
    line = f"{'7_2':40};east|{'RUNNING':32}|{'0':16}|None"
    assert SQUEUE.parse(said(line)) == {"7_2;east": Report(JobState.RUNNING, "RUNNING")}
    assert "--Format=JobArrayID:40;east|,State:32|" in " ".join(SQUEUE.command(["7_2;east"]))


def test_jobs_of_several_clusters_have_controllers_of_their_own():
    """A shell line over several clusters would hide that one of them was away."""
    ids = ["1", "16_2", "2;east", "3;west", "4;east", "67108866", "67108867;east"]
    assert [slurm.controller(job_id) for job_id in ids] == [
        *("", "", "--clusters=east", "--clusters=west", "--clusters=east"),
        *("--federation", "--clusters=east"),
    ]


def test_an_array_is_asked_about_once_however_many_elements_it_has():
    """Ten thousand elements are more than one argument may hold, so nothing could be asked at all."""
    ids = [f"{array}_{index};main" for array in range(1_000_000, 1_000_011) for index in range(1000)]
    for query in (SQUEUE, SACCT):
        (asked,) = (word for word in query.command([*ids, "7;main", "8_3;main"]) if "--jobs=" in word)
        assert asked == f"--jobs={','.join(map(str, range(1_000_000, 1_000_011)))},7,8_3"


def test_a_job_of_a_federation_is_looked_for_in_all_of_its_clusters():
    """slurm.conf(5): ids above 67,108,863 are federated; the cluster that lost a job says REVOKED."""
    for query in (SQUEUE, SACCT):
        assert "--federation" in query.command(["67108866"])
        assert "--federation" not in query.command(["67108863"])
    rows = ["67108866|REVOKED|0|None", "67108866|RUNNING|0|None"]
    for first, second in (rows, rows[::-1]):
        seen = SQUEUE.parse(said(f"CLUSTER: east\n{first}\nCLUSTER: west\n{second}\n"))
        assert seen["67108866"].state is JobState.RUNNING
    assert not SQUEUE.parse(said(rows[0]))["67108866"].state.over


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
    assert slurm_jobs.report(*answer) == STATES[answer]


def test_unknown_word_is_no_end():
    assert not slurm_jobs.report("NEW_WORD").state.over


RECORDED = """\
4                                       |CANCELLED                       |15              |None
8                                       |CANCELLED                       |0               |DependencyNeverSatisfied
1                                       |COMPLETED                       |0               |None
2                                       |FAILED                          |1792            |NonZeroExitCode
3                                       |FAILED                          |9               |JobLaunchFailure
5                                       |PENDING                         |0               |Resources
7_0                                     |PENDING                         |0               |Priority
6                                       |TIMEOUT                         |0               |TimeLimit
"""
"""A real Slurm 22.05.8; job 6 trapped TERM and ended with exit code 0 at its limit."""


def test_one_squeue_tells_of_every_job_also_how_it_ended():
    assert SQUEUE.parse(said(RECORDED)) == {
        "1": Report(JobState.COMPLETED, "COMPLETED", 0),
        "2": Report(JobState.FAILED, "FAILED (NonZeroExitCode)", 7),
        "3": Report(JobState.FAILED, "FAILED (JobLaunchFailure)", None, 9),
        "4": Report(JobState.CANCELLED, "CANCELLED", None, 15),
        "5": Report(JobState.QUEUED, "PENDING (Resources)"),
        "6": Report(JobState.TIMEOUT, "TIMEOUT (TimeLimit)"),
        "7_0": Report(JobState.QUEUED, "PENDING (Priority)"),
        "8": Report(JobState.CANCELLED, "CANCELLED (DependencyNeverSatisfied)"),
    }


@pytest.mark.parametrize(
    ("printed", "code", "signal"),
    [
        ("0", None, None),
        ("256", 1, None),
        ("32512", 127, None),
        ("137", None, 9),
        ("7:0", 7, None),
        ("-2", None, None),
    ],
)
def test_a_wait_status_is_an_exit_code_or_a_signal(printed, code, signal):
    """137 is signal 9 with a core dumped (wait(2))."""
    (seen,) = SQUEUE.parse(said(f"1|FAILED|{printed}|None")).values()
    assert (seen.exit_code, seen.signal) == (code, signal)


def test_a_reason_may_hold_the_separator():
    assert SQUEUE.parse(said("1|PENDING|0|a|b\n"))["1"].words == "PENDING (a|b)"


@pytest.mark.parametrize(
    "text", ["<html>", "JOBID STATE", "1|RUNNING", "x|RUNNING|0|None", "1|RUNNING|0|None\n\x00"]
)
def test_an_answer_that_is_none_is_an_error_and_no_end(text):
    """Were it passed over, its jobs would count as vanished."""
    with pytest.raises(SchedulerError, match="squeue answered what it was not asked"):
        SQUEUE.parse(said(text))


def test_sacct_answers_under_both_names_of_a_job():
    seen = SACCT.parse(said("12|east|CANCELLED by 1000|0:15\n"))
    assert set(seen) == {"12", "12;east"}
    assert seen["12"].state is JobState.CANCELLED


def test_no_accounting_means_that_nothing_is_known():
    assert SACCT.parse(said(stderr="Slurm accounting storage is disabled\n", exit_code=1)) == {}


def test_unknown_job_is_absent():
    assert SQUEUE.parse(said("", "slurm_load_jobs error: Invalid job id specified\n", 1)) == {}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (SQUEUE, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"),
        (SACCT, "sacct: error: Problem talking to the database: Connection refused"),
    ],
)
def test_controller_that_is_away_is_an_error_and_no_end(query, words):
    with pytest.raises(SchedulerError, match=re.escape(words)):
        query.parse(said("", words, 1))


def test_only_the_question_for_the_past_needs_accounting():
    assert [query.accounting for query in slurm.QUERIES] == [False, True]


def test_preflight_says_when_the_job_would_start():
    """Slurm 22.05 says so on standard error."""
    words = (
        "sbatch: Job 10 to start at 2026-11-22T01:37:09 using 1 processors on nodes n1 in partition batch\n"
    )
    assert slurm.PREFLIGHT.command(Path("/x/job.sh")) == ["sbatch", "--test-only", "/x/job.sh"]
    assert slurm.PREFLIGHT.parse(said(stderr=words)) == "2026-11-22T01:37:09"
    assert slurm.PREFLIGHT.parse(said()) == ""


def test_preflight_refuses_in_slurms_words():
    words = "allocation failure: Requested node configuration is not available"
    with pytest.raises(SchedulerError, match=f"would refuse the job: {words}"):
        slurm.PREFLIGHT.parse(said(stderr=words, exit_code=1))


def test_preflight_does_not_take_silence_for_a_judgement():
    """Slurm 22.05 puts both in the same words but the last."""
    words = "allocation failure: Unable to contact slurm controller (connect failure)"
    with pytest.raises(SchedulerError, match=r"^Slurm does not answer: .*connect failure") as caught:
        slurm.PREFLIGHT.parse(said(stderr=words, exit_code=1))
    assert caught.value.hint == "nothing was submitted; try again later"


@pytest.mark.parametrize(
    "result",
    [
        said(stderr="allocation failure: Socket timed out on send/recv operation", exit_code=1),
        said(stderr="allocation failure: Zero Bytes were transmitted or received", exit_code=1),
        said(exit_code=-15),
    ],
    ids=["busy", "cut off", "killed"],
)
def test_preflight_does_not_take_a_busy_controller_for_a_refusal(result):
    """Once these were told as jobs that Slurm would refuse, while of sbatch itself they were no answer."""
    with pytest.raises(NoAnswerError, match=r"^Slurm does not answer: ") as caught:
        slurm.PREFLIGHT.parse(result)
    assert caught.value.hint == "nothing was submitted; try again later"


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
    assert head(slurm, work) == [
        "#SBATCH --job-name=sample-1",
        "#SBATCH --nodes=3",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --time=2-01:02:03",
        "#SBATCH --qos=regular",
        "#SBATCH --constraint=gpu&hbm80g",
        "#SBATCH --account=physics",
        "#SBATCH --signal=B:USR1@120",
        "#SBATCH --output=logs/attempt-1/job.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --no-requeue",
        "#SBATCH --exclusive",
    ]


def one(work, option):
    """The one directive of a job with this option."""
    (found,) = [directive for directive in slurm.directives(work) if directive.option == option]
    return found


DIALECT = site(
    scheduler={"memory_per_device": "120GiB", "network": "disable_rdzv_get", "cluster": "gpu1"},
    partitions={"batch": {"directives": ["--reservation=training"]}},
    nodes={"gpu": {"threads_per_core": 2}},
    policy={"requeue": True},
)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("--mem=245760M", "site scheduler.memory_per_device"),
        ("--network=disable_rdzv_get", "site scheduler.network"),
        ("--clusters=gpu1", "site scheduler.cluster"),
        ("--cpus-per-task=2", "site nodes.gpu.cores"),
        ("--reservation=training", "site partitions.batch.directives.0"),
        ("--requeue", "site policy.requeue"),
    ],
)
def test_a_dialect_stands_in_the_site_file_and_each_line_says_so(tmp_path, text, origin):
    work = job(tmp_path, DIALECT)
    (found,) = [directive for directive in slurm.directives(work) if directive.text == text]
    assert str(found.origin) == origin


def test_srun_counts_cpus_as_sbatch_does(tmp_path):
    """Without it ranks of Slurm 22.05 to 23.02 would get half of their cores."""
    assert "--cpus-per-task=2" in launch.command(job(tmp_path, DIALECT))


def test_srun_names_the_type_of_devices_as_sbatch_does(tmp_path):
    """A real Slurm 22.05: "Invalid GRES specification (with and without type identification)"."""
    machine = site(scheduler={"gpu_type": "a100"}, launch={"gpu_visibility": "one_per_task"})
    command = launch.command(job(tmp_path, machine))
    assert command[command.index("--gpus-per-task=a100:1") + 1] == "--gpu-bind=per_task:1"


def test_memory_that_the_site_forbids_to_ask_for_is_a_mistake_in_its_file(tmp_path):
    machine = site(scheduler={"memory_per_device": "1GiB", "forbidden": ["--mem"]})
    with pytest.raises(SiteError, match="forbids --mem, but this job needs '--mem=2048M'"):
        head(slurm, job(tmp_path, machine))


@pytest.mark.parametrize(
    ("ending", "word"), [("ok", "afterok"), ("failed", "afternotok"), ("any", "afterany")]
)
def test_a_job_that_waits_for_others_does_not_wait_for_what_cannot_come(tmp_path, ending, word):
    work = replace(job(tmp_path, site()), after=After(ending, ("16", "17_2", "18;east")))
    assert one(work, "--dependency").text == f"--dependency={word}:16:17_2:18"
    assert str(one(work, "--dependency").origin) == "flag --after"
    assert one(work, "--kill-on-invalid-dep").value == "=yes"


def test_a_job_cannot_wait_for_one_of_another_cluster(tmp_path):
    work = replace(job(tmp_path, DIALECT), after=After("ok", ("5", "6;east")))
    with pytest.raises(UsageError, match="job 6;east is one of cluster east, but this one goes to gpu1"):
        head(slurm, work)


@pytest.mark.parametrize(("at_once", "text"), [(None, "--array=0-2"), (2, "--array=0-2%2")])
def test_an_array_has_an_index_and_a_log_for_each_element(tmp_path, at_once, text):
    folders = tuple(tmp_path / f"sample-{index}" for index in range(3))
    work = replace(job(folders[0], site()), array=Array(folders, at_once))
    assert one(work, "--array").text == text
    assert one(work, "--output").text == "--output=../sample-%a/logs/attempt-1/job.log"
    assert [slurm.element(job_id, 2) for job_id in ("16", "16;east")] == ["16_2", "16_2;east"]


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"gpu_request": "gres"}, "#SBATCH --gres=gpu:2"),
        ({"gpu_request": "gres", "gpu_type": "a100"}, "#SBATCH --gres=gpu:a100:2"),
        ({"gpu_request": "gpus-per-node"}, "#SBATCH --gpus-per-node=2"),
        ({"gpu_request": "gpus-per-node", "gpu_type": "h100"}, "#SBATCH --gpus-per-node=h100:2"),
        ({"gpu_request": "gpus", "gpu_type": "a100"}, "#SBATCH --gpus=a100:6"),
        ({"gpu_request": "gpus-per-task"}, "#SBATCH --gpus-per-task=1"),
    ],
)
def test_gpus_are_asked_for_as_the_site_spells_it(tmp_path, asked, line):
    assert line in head(slurm, job(tmp_path, site(scheduler=asked), nodes=3))


def test_nothing_is_asked_for_where_nodes_come_with_their_gpus(tmp_path):
    lines = head(slurm, job(tmp_path, site(scheduler={"gpu_request": "none"})))
    assert not any("gpu" in line or "gres" in line for line in lines)


@pytest.mark.parametrize(
    ("walltime", "asked", "lead"), [("10:00:00", None, 120), ("00:05:00", None, 30), ("00:05:00", 200, 200)]
)
def test_warning_comes_as_long_before_the_limit_as_is_asked(tmp_path, walltime, asked, lead):
    checkpoint = {"before_limit_seconds": asked}
    assert f"#SBATCH --signal=B:USR1@{lead}" in head(
        slurm, job(tmp_path, site(), walltime=walltime, checkpoint=checkpoint)
    )


def test_no_warning_where_none_is_wanted(tmp_path):
    lines = head(slurm, job(tmp_path, site(), checkpoint={"before_limit_seconds": 0}))
    assert not any("--signal" in line for line in lines)


def test_forbidden_directive_is_left_out_where_the_job_is_right_without_it(tmp_path):
    lines = head(slurm, job(tmp_path, site(scheduler={"forbidden": ["--open-mode", "--no-requeue"]})))
    assert not any("open-mode" in line or "requeue" in line for line in lines)


def test_forbidden_directive_that_the_job_needs_is_an_error(tmp_path):
    machine = site(scheduler={"gpu_request": "gres", "forbidden": ["--gres=gpu"]})
    with pytest.raises(SiteError, match="forbids --gres, but this job needs '--gres=gpu:2'"):
        head(slurm, job(tmp_path, machine))


@pytest.mark.parametrize("line", ["exclusive", "#SBATCH --exclusive", "--comment=a#b"])
def test_site_directive_that_sbatch_would_cut_short_is_refused(tmp_path, line):
    with pytest.raises(SiteError, match="is not a directive"):
        head(slurm, job(tmp_path, site(scheduler={"directives": [line]})))


def test_constraint_with_a_blank_is_refused(tmp_path):
    with pytest.raises(SiteError, match="constraint 'a b'") as caught:
        head(slurm, job(tmp_path, site(partitions={"batch": {"constraint": "a b"}})))
    assert "gpu&hbm80g" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["a%j", "100%%", "back\\slash"])
def test_run_folder_that_slurm_would_rewrite_is_refused(name):
    """Such a job failed on a real Slurm with exit code 1 and not a word."""
    with pytest.raises(UsageError, match="Slurm replaces"):
        head(slurm, job(Path("/runs") / name, site()))


def test_run_id_that_is_no_word_is_refused(tmp_path):
    with pytest.raises(SchedulerError, match="cannot be a job name"):
        head(slurm, job(tmp_path, site(), run="a\n#SBATCH --nodes=99"))


def test_module_is_a_scheduler():
    backend: Scheduler = slurm
    assert backend.submit(Path("/x/job.sh")) == ["sbatch", "--parsable", "/x/job.sh"]
