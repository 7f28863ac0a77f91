"""LSF: what it is asked, what its published answers mean, and that ranks under jsrun start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from schedulers.sample import HOSTILE, HOSTILE_NAME, bash, head, interpreter, job, prepared, site
from schedulers.standin import install

from hpcdl.engine.ranks import discover
from hpcdl.errors import SchedulerError, UsageError
from hpcdl.schedulers import launch, lsf
from hpcdl.schedulers.base import After, Array, JobState, Report, Scheduler
from hpcdl.schedulers.script import render
from hpcdl.shell import Completed, outside_job

RECORDINGS = Path(__file__).parent / "recordings" / "lsf"
(QUERY,) = lsf.QUERIES


def recorded(name: str, exit_code: int = 0) -> Completed:
    """A published answer, decoded as hpcdl.shell decodes."""
    out, err = RECORDINGS / f"{name}.out", RECORDINGS / f"{name}.err"
    assert out.exists() or err.exists(), name
    texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in (out, err)]
    return Completed(exit_code, *texts)


def coral(**changes):
    """A machine of IBM's CORAL design: whole nodes, divided by jsrun."""
    return site("lsf", "jsrun", **{"scheduler": {"gpu_request": "none"}, **changes})


def test_whole_nodes_are_asked_for_where_jsrun_divides_them(tmp_path):
    sample = coral(
        partitions={"batch": {"kind": "queue", "name": "pbatch"}},
        scheduler={"gpu_request": "none", "directives": ['-alloc_flags "gpumps smt1"']},
    )
    work = job(tmp_path, sample, nodes=3, ranks_per_node=4, walltime="01:30:01", account="physics")
    assert head(lsf, work) == [
        "#BSUB -J sample-1",
        "#BSUB -nnodes 3",
        "#BSUB -W 1:31",
        "#BSUB -q pbatch",
        "#BSUB -P physics",
        "#BSUB -o logs/attempt-1/job.log",
        "#BSUB -rn",
        '#BSUB -alloc_flags "gpumps smt1"',
    ]


def test_slots_and_devices_are_asked_for_elsewhere(tmp_path):
    sample = site("lsf", "mpiexec-openmpi", scheduler={"gpu_type": "NVIDIAA100"}, policy={"requeue": True})
    lines = head(lsf, job(tmp_path, sample, nodes=3, ranks_per_node=4))
    assert lines[1:4] == ["#BSUB -n 12", '#BSUB -R "span[ptile=4]"', '#BSUB -gpu "num=4:gmodel=NVIDIAA100"']
    assert lines[-1] == "#BSUB -r"
    without = site("lsf", "mpiexec-openmpi", scheduler={"gpu_request": "none"})
    assert not any("-gpu" in line for line in head(lsf, job(tmp_path, without)))


@pytest.mark.parametrize(
    ("asked", "written"),
    [("00:00:01", "0:01"), ("00:59:59", "1:00"), ("01:00:00", "1:00"), ("2-01:02:03", "49:03")],
)
def test_walltime_is_rounded_up_to_minutes(tmp_path, asked, written):
    assert f"#BSUB -W {written}" in head(lsf, job(tmp_path, coral(), walltime=asked))


def test_bank_replaces_a_project_that_the_site_forbids(tmp_path):
    sample = coral(scheduler={"gpu_request": "none", "forbidden": ["-P", "-rn"]})
    lines = head(lsf, job(tmp_path, sample, account="physics"))
    assert "#BSUB -G physics" in lines
    assert "#BSUB -rn" not in lines


def test_mandatory_account_is_asked_for(tmp_path):
    sample = coral(scheduler={"gpu_request": "none", "mandatory": ["account"]})
    with pytest.raises(UsageError, match="takes no job without an account"):
        head(lsf, job(tmp_path, sample))


@pytest.mark.parametrize(("ending", "word"), [("ok", "done"), ("failed", "exit"), ("any", "ended")])
def test_dependencies_are_one_expression_that_ends_the_job_when_it_cannot_hold(tmp_path, ending, word):
    work = replace(job(tmp_path, coral()), after=After(ending, ("1", "2[3]")))
    assert head(lsf, work)[-1] == f'#BSUB -w "{word}(1) && {word}(2[3])" -ti'


@pytest.mark.parametrize(("at_once", "limit"), [(None, ""), (2, "%2")])
def test_array_counts_from_one(tmp_path, at_once, limit):
    folders = tuple(tmp_path / f"sample-1-{index}" for index in range(4))
    work = replace(job(folders[0], coral()), array=Array(folders, at_once))
    lines = head(lsf, work)
    assert any(line.endswith(f'[1-4]{limit}"') for line in lines if line.startswith("#BSUB -J "))
    assert "#BSUB -o /dev/null" in lines
    assert lsf.ELEMENTS is not None
    assert [lsf.ELEMENTS.job_id("12", index) for index in (0, 3)] == ["12[1]", "12[4]"]


def test_element_finds_its_folder_by_an_index_that_counts_from_one(tmp_path):
    sample = site(
        "lsf", "fork", scheduler={"gpu_request": "none"}, nodes={"gpu": {"device": {"kind": "cpu"}}}
    )
    folders = [prepared(tmp_path / HOSTILE_NAME / f"seeds-{index}") for index in range(2)]
    python = interpreter(tmp_path, 'echo "in $PWD"')
    work = job(folders[0].path, sample, ranks_per_node=1, python=python, run="seeds-0")
    script = render(replace(work, array=Array(tuple(folder.path for folder in folders))))
    for index, environment in ((0, {"LSB_JOBINDEX": "1"}), (1, {"LSB_JOBINDEX": "2"})):
        path = {"PATH": os.environ["PATH"]}
        subprocess.run(["bash", "-c", script], cwd=folders[0].path, env=path | environment, check=True)
        assert folders[index].job_log(1).read_text() == f"in {folders[index].path}\n"
        assert json.loads(folders[index].job_exit(1).read_text()) == {"exit_code": 0}
    outside = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, check=False)
    assert outside.returncode != 0


def test_module_is_a_scheduler():
    backend: Scheduler = lsf
    assert backend.submit(Path("/x y/job.sh"))[-1] == "./job.sh"
    assert backend.cancel("12[1]") == ["bkill", "12[1]"]
    assert QUERY.command(["1", "2[3]"]) == [
        *("bjobs", "-a", "-noheader", "-o", "jobid jobindex stat exit_code exit_reason delimiter='|'"),
        *("1", "2[3]"),
    ]


BSUB = r"""#!/bin/bash
if [ $# = 0 ]; then how="from stdin"; script=$(cat); else how="from $1"; script=$(cat "$1"); fi
[ "$script" = "$(cat job.sh)" ] && echo "$how: Job <7> is submitted to queue <normal>."
"""


@pytest.mark.parametrize(
    ("configuration", "how"),
    [
        ("LSB_BSUB_PARSE_SCRIPT=Y", "from ./job.sh"),
        ('  LSB_BSUB_PARSE_SCRIPT = "y"', "from ./job.sh"),
        ("LSB_BSUB_PARSE_SCRIPT=N", "from stdin"),
        ("# LSB_BSUB_PARSE_SCRIPT=Y", "from stdin"),
        (None, "from stdin"),
    ],
)
def test_script_is_handed_over_as_the_sites_lsf_reads_it(tmp_path, configuration, how):
    """A bsub that is given a file it does not parse would run it without its directives."""
    folder = tmp_path / HOSTILE_NAME
    folder.mkdir()
    (folder / "job.sh").write_text("#BSUB -n 1\n")
    (tmp_path / "bsub").write_text(BSUB)
    (tmp_path / "bsub").chmod(0o755)
    if configuration is not None:
        (tmp_path / "lsf.conf").write_text(f"LSF_VERSION=10.1\n{configuration}\n")
    ran = subprocess.run(
        lsf.submit(folder / "job.sh"), cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "LSF_ENVDIR": str(tmp_path)}, check=True,
    )  # fmt: skip
    assert ran.stdout.startswith(how)
    assert lsf.submitted(Completed(0, ran.stdout, ran.stderr)) == "7"


def test_enclosing_job_does_not_reshape_a_submission_but_still_says_where_lsf_is():
    inherited = {"LSB_JOBID": "1", "LSB_JOBINDEX": "2", "JSM_NAMESPACE_RANK": "0", "LSF_ENVDIR": "/etc/lsf"}
    assert outside_job(inherited) == {"LSF_ENVDIR": "/etc/lsf"}


def test_submitted_reads_the_number_after_whatever_a_site_prints():
    assert lsf.submitted(recorded("bsub-ok")) == "322"
    chatty = "Job <1> is not a job\nYour bank has 3 hours.\nJob <12> is submitted to queue <pbatch>.\n"
    assert lsf.submitted(Completed(0, chatty, "")) == "12"


@pytest.mark.parametrize("answer", ["", "Job <> is submitted to queue <x>.", "Job <12> is submitted", "\x00"])
def test_submission_without_an_id_is_an_error(answer):
    with pytest.raises(SchedulerError, match="no job id"):
        lsf.submitted(Completed(0, answer, ""))


def test_refusal_gives_bsubs_own_words():
    with pytest.raises(SchedulerError, match="nosuch: No such queue"):
        lsf.submitted(recorded("bsub-queue", 255))


def test_jobs_and_elements_of_arrays_are_told_apart():
    seen = QUERY.parse(recorded("bjobs-all"))
    limit = "TERM_RUNLIMIT: job killed after reaching LSF run time limit"
    assert seen == {
        "771278": Report(JobState.TIMEOUT, f"EXIT: {limit}"),
        "771279": Report(JobState.CANCELLED, "EXIT: TERM_OWNER: job killed by owner"),
        "771280": Report(JobState.COMPLETED, "DONE", 0),
        "771281": Report(JobState.FAILED, "EXIT", 9),
        "771282": Report(JobState.RUNNING, "RUN"),
        "771283": Report(JobState.QUEUED, "PEND"),
        "771284[1]": Report(JobState.RUNNING, "RUN"),
        "771284[2]": Report(JobState.QUEUED, "PEND"),
    }


def test_element_is_the_same_where_the_site_shows_its_index_in_the_id():
    """LSB_BJOBS_DISPLAY_ENH in lsf.conf."""
    assert set(QUERY.parse(Completed(0, "771284[2]|2|RUN|-|-\n", ""))) == {"771284[2]"}


STATES = {
    JobState.QUEUED: "PEND PSUSP WAIT",
    JobState.RUNNING: "RUN USUSP SSUSP",
    JobState.COMPLETED: "DONE POST_DONE POST_ERR",
    JobState.FAILED: "EXIT",
    JobState.UNKNOWN: "UNKWN ZOMBI NEWWORD",
}


@pytest.mark.parametrize(
    ("state", "word"), [(state, word) for state in STATES for word in STATES[state].split()]
)
def test_each_word_of_lsf_has_a_state(state, word):
    seen = lsf.report(word)
    assert (seen.state, seen.words) == (state, word)


REASONS = {
    "TERM_CPULIMIT": JobState.TIMEOUT,
    "TERM_DEADLINE": JobState.TIMEOUT,
    "TERM_MEMLIMIT": JobState.OUT_OF_MEMORY,
    "TERM_FORCE_OWNER": JobState.CANCELLED,
    "TERM_ADMIN": JobState.CANCELLED,
    "TERM_REMOVE_HUNG_JOB": JobState.NODE_FAILED,
    "TERM_PREEMPT": JobState.PREEMPTED,
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_lsf_did_to_a_job_is_no_exit_code_of_its_own(reason):
    seen = lsf.report("EXIT", "137", f"{reason}: job killed")
    assert seen == Report(REASONS[reason], f"EXIT: {reason}: job killed")


def test_signal_from_outside_leaves_the_jobs_exit_code():
    reason = "TERM_EXTERNAL_SIGNAL: job killed by a signal external to LSF"
    assert lsf.report("EXIT", "137", reason) == Report(JobState.FAILED, f"EXIT: {reason}", 137)


@pytest.mark.parametrize("name", ["bjobs-unknown", "bjobs-none"])
@pytest.mark.parametrize("code", [0, 255])
def test_unknown_job_is_absent(name, code):
    """Which exit code it gives is a setting of the site."""
    assert QUERY.parse(recorded(name, code)) == {}


def test_unknown_job_does_not_hide_a_known_one():
    seen = QUERY.parse(Completed(255, "771282|0|RUN|-|-\n", recorded("bjobs-unknown").stderr))
    assert set(seen) == {"771282"}


def test_lsf_that_is_down_is_an_error_and_no_end():
    with pytest.raises(SchedulerError, match="LSF is down"):
        QUERY.parse(recorded("bjobs-down", 255))


@pytest.mark.parametrize(
    "garbage", ["<html>|||||", "||||", "no bars", "12|0|RUN", "x|0|DONE|-|-", "\x00|0|1|2|3"]
)
def test_garbage_says_nothing_of_any_job(garbage):
    assert QUERY.parse(Completed(0, garbage, "")) == {}


def test_cancelling_a_job_that_is_over_is_no_error():
    lsf.cancelled(recorded("bkill-ok"))
    lsf.cancelled(recorded("bkill-finished", 255))
    lsf.cancelled(recorded("bjobs-unknown", 255))


def test_cancelling_that_fails_gives_bkills_own_words():
    with pytest.raises(SchedulerError, match="LSF is down"):
        lsf.cancelled(recorded("bjobs-down", 255))


def test_resource_set_a_node_lets_its_ranks_see_all_devices(tmp_path):
    work = job(
        tmp_path, coral(launch={"arguments": ["--smpiargs=-gpu"]}), nodes=3, ranks_per_node=4, python="python"
    )
    assert launch.command(work) == [
        *("jsrun", "-X", "1", "--stdio_mode", "prepended", "-d", "packed"),
        *("-n", "3", "-r", "1", "-a", "4", "-c", "4", "-g", "4", "-b", "packed:1"),
        *("-E", "HPCDL_ATTEMPT", "-E", "OMP_NUM_THREADS", "--smpiargs=-gpu"),
        *("python", "-m", "hpcdl.engine", str(tmp_path)),
    ]


def test_resource_set_a_rank_shows_each_its_own_device(tmp_path):
    sample = coral(launch={"gpu_visibility": "one_per_task", "cpu_bind": "rs"})
    words = launch.command(job(tmp_path, sample, nodes=3, ranks_per_node=4))
    assert " ".join(words[6:18]) == "packed -n 12 -r 4 -a 1 -c 1 -g 1 -b"
    assert words[18] == "rs"


def test_hostile_text_arrives_in_every_rank_that_jsrun_starts(tmp_path, monkeypatch):
    """Each variable must be named to jsrun: the stand-in passes on no other."""
    monkeypatch.setenv("PATH", install(tmp_path, "lsf"))
    folder = prepared(tmp_path / HOSTILE_NAME)
    body = (
        f'for n in {" ".join(HOSTILE)}; do printf "%s=%s\\0" "$n" "${{!n}}"; done '
        f'>"{tmp_path}/seen-$JSM_NAMESPACE_RANK"; printf %s "${{@: -1}}" >"{tmp_path}/folder-$JSM_NAMESPACE_RANK"; '
        f'env -0 >"{tmp_path}/environment-$JSM_NAMESPACE_RANK"'
    )
    work = job(folder.path, coral(), nodes=2, python=interpreter(tmp_path, body), environment=HOSTILE)
    assert bash(render(work), folder.path).returncode == 0
    for rank in range(4):
        seen = (tmp_path / f"seen-{rank}").read_bytes()
        assert seen == "".join(f"{name}={value}\0" for name, value in HOSTILE.items()).encode()
        assert (tmp_path / f"folder-{rank}").read_bytes() == str(folder.path).encode()
        pairs = (tmp_path / f"environment-{rank}").read_text().split("\0")
        place = discover(dict(pair.split("=", 1) for pair in pairs if pair), 4)
        assert (place.rank, place.local_rank) == (rank, rank % 2)
    assert not list(tmp_path.rglob("pwned*"))


def test_log_is_written_while_the_job_runs(tmp_path, monkeypatch):
    """LSF would copy it when the job is over; what LSF itself appends then stands after it."""
    monkeypatch.setenv("PATH", install(tmp_path, "lsf"))
    folder = prepared(tmp_path / "run")
    folder.job_log(1).write_text("an earlier line\n")
    script = render(
        job(folder.path, coral(), ranks_per_node=1, python=interpreter(tmp_path, "echo hello; exit 7"))
    )
    assert bash(script, folder.path).returncode == 7
    assert folder.job_log(1).read_text() == "an earlier line\nhello\n"
    assert json.loads(folder.job_exit(1).read_text()) == {"exit_code": 7}


def test_run_time_limit_ends_the_script_with_a_record(tmp_path):
    """LSF announces it with USR2, of which bash would die at once."""
    folder = prepared(tmp_path / "run")
    sample = site("lsf", "fork", scheduler={"gpu_request": "none"})
    python = interpreter(tmp_path, f"touch {tmp_path}/started; exec sleep 60")
    (folder.path / "job.sh").write_text(render(job(folder.path, sample, ranks_per_node=1, python=python)))
    running = subprocess.Popen([shutil.which("bash") or "bash", "job.sh"], cwd=folder.path)
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    running.send_signal(signal.SIGUSR2)
    assert running.wait(timeout=30) == 143
    assert json.loads(folder.job_exit(1).read_text()) == {"exit_code": 143}
