"""PBS: what it is asked, and what its recorded answers mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from schedulers.sample import job, site

from hpcdl.errors import SchedulerError, SiteError, UsageError
from hpcdl.schedulers import pbs
from hpcdl.schedulers.base import JobState, Report, Scheduler
from hpcdl.shell import Completed

RECORDINGS = Path(__file__).parent / "recordings"
BY_JSON, BY_TEXT = pbs.QUERIES


def recorded(name: str, exit_code: int = 0) -> Completed:
    """A recorded answer, decoded as hpcdl.shell decodes."""
    out, err = RECORDINGS / f"{name}.out", RECORDINGS / f"{name}.err"
    assert out.exists() or err.exists(), name
    texts = [path.read_bytes().decode("utf-8", "replace") if path.exists() else "" for path in (out, err)]
    return Completed(exit_code, *texts)


ENDINGS = {
    "dep-ok-parent-end-json": Report(JobState.COMPLETED, "", 0),
    "restart-ended-json": Report(JobState.COMPLETED, "", 0),
    "final-exit255": Report(JobState.FAILED, "", 255),
    "final-child-kill9": Report(JobState.FAILED, "", 137),
    "final-wt-trap": Report(JobState.TIMEOUT, "walltime exceeded"),
    "killed-qdel-qstat-xf-json": Report(JobState.CANCELLED, "", None, 15),
    "killed-usr1-qstat-xf-json": Report(JobState.FAILED, "", None, 10),
    "nodefail-deleted-json": Report(JobState.NODE_FAILED, "the job's first host was lost"),
    "nohome-json": Report(JobState.FAILED, "PBS could not start the job"),
    "deleted-queued-qstat-xf-json": Report(JobState.CANCELLED, ""),
    "dep-ok-afternotok-end-json": Report(JobState.CANCELLED, "deleted before it ran"),
    "deadhost-forced-json": Report(JobState.CANCELLED, ""),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_ended_job_is_told_by_its_exit_status(name):
    """F alone says nothing; an expected text that is empty stands for the server's comment."""
    (seen,) = BY_JSON.parse(recorded(name)).values()
    expected = ENDINGS[name]
    assert (seen.state, seen.exit_code, seen.signal) == (expected.state, expected.exit_code, expected.signal)
    assert expected.words in seen.words


WAITING = {
    "queued-never-runs-qstat-xf-json": "Q: Can Never Run: Insufficient amount of resource",
    "held-user-qstat-xf-json": "H",
    "waiting-json": "W",
    "koed-nodir-json": "H: job held, too many failed attempts to run",
}


@pytest.mark.parametrize("name", WAITING)
def test_waiting_job_is_queued_whatever_exit_status_it_shows(name):
    (seen,) = BY_JSON.parse(recorded(name)).values()
    assert seen.state is JobState.QUEUED
    assert seen.words.startswith(WAITING[name])
    assert seen.exit_code is None


@pytest.mark.parametrize(
    "name", ["running-qstat-xf-json", "suspended-qstat-xf-json", "dep-fin0-afterok-json"]
)
def test_job_that_is_still_on_its_hosts_is_running(name):
    """Also while its files are delivered (E)."""
    (seen,) = BY_JSON.parse(recorded(name)).values()
    assert seen.state is JobState.RUNNING


def test_job_requeued_after_its_host_was_lost_is_queued():
    """Exit_status -20 stays visible in Q."""
    assert BY_JSON.parse(recorded("nodefail-end-json"))["185.pbshead"].state is JobState.QUEUED


def test_unknown_letter_is_kept_and_is_no_end():
    seen = pbs.report({"job_state": "?", "comment": "strange"})
    assert seen == Report(JobState.UNKNOWN, "?: strange")
    assert not seen.state.over


@pytest.mark.parametrize(("status", "state"), [(-27, JobState.OUT_OF_MEMORY), (-99, JobState.FAILED)])
def test_negative_codes_are_what_pbs_did(status, state):
    seen = pbs.report({"job_state": "F", "Exit_status": status})
    assert seen.state is state
    assert seen.exit_code is None


def test_text_and_json_say_the_same_of_every_job():
    """35 jobs with odd names, paths and variables, recorded in one moment in both forms."""
    by_json = BY_JSON.parse(recorded("qstat-xf-json-all"))
    assert len(by_json) == 35
    assert BY_TEXT.parse(recorded("qstat-xf-all")) == by_json


@pytest.mark.parametrize(
    "name", ["json22-latin", "jsonhead-latin", "json-vars-f", "json22-vars", "jsonhead-exe"]
)
def test_json_that_is_hardly_json_is_read(name):
    (seen,) = BY_JSON.parse(recorded(name)).values()
    assert seen.state is JobState.QUEUED


@pytest.mark.parametrize(
    "damage",
    [
        '{"Jobs": {"1.s": {"job_state": "R", "Variable_List": {"A": 005}}}}',
        '{"Jobs": {"1.s": {"job_state": "R", "Variable_List": {"A": "\\x"}}}}',
        'Warning: text before\n{"Jobs": {}}',
        "",
    ],
)
def test_what_is_no_json_is_left_to_the_text_form(damage):
    """Leading zeros, bad escapes and text mixed in: openpbs#1255, #2049, #2541."""
    assert BY_JSON.parse(Completed(0, damage, "")) == {}
    assert BY_TEXT.parse(recorded("running-qstat-f"))["49.pbshead"].state is JobState.RUNNING


def test_second_question_finds_what_the_first_leaves_out():
    """With several ids the main branch prints only the first job in JSON, and nothing on stderr."""
    assert set(BY_JSON.parse(recorded("head-multi-known"))) == {"284.pbshead"}
    assert set(BY_JSON.parse(recorded("json22-multi"))) == {"284.pbshead", "286.pbshead", "287.pbshead"}
    assert BY_TEXT.command(["286.pbshead", "287.pbshead"]) == [
        "qstat",
        "-x",
        "-f",
        "286.pbshead",
        "287.pbshead",
    ]


def test_unknown_job_is_absent_and_does_not_hide_known_ones():
    assert BY_JSON.parse(recorded("qstat-xf-json-unknown", 153)) == {}
    assert BY_JSON.parse(recorded("nohist-qstat-xf-finished")) == {}
    assert set(BY_JSON.parse(recorded("json22-multi-unknown", 153))) == {"284.pbshead", "286.pbshead"}


@pytest.mark.parametrize("query", pbs.QUERIES)
def test_server_that_is_away_is_an_error_and_no_end(query):
    with pytest.raises(SchedulerError, match="cannot connect to server pbshead"):
        query.parse(recorded("down-qstat-f-json", 255))


def test_submitted_keeps_the_whole_id():
    assert pbs.submitted(recorded("qsub-ok")) == "1.pbshead"


@pytest.mark.parametrize(
    ("name", "exit_code", "words"),
    [
        ("qsub-unknown-queue", 170, "qsub: Unknown queue"),
        ("qsub-over-walltime", 188, "Job violates queue and/or server resource limits"),
        ("down-qsub", 162, "cannot connect to server"),
    ],
)
def test_refusal_gives_qsubs_own_words(name, exit_code, words):
    with pytest.raises(SchedulerError, match=words):
        pbs.submitted(recorded(name, exit_code))


def test_submission_without_an_id_is_an_error():
    with pytest.raises(SchedulerError, match="no job id"):
        pbs.submitted(Completed(0, "", ""))


@pytest.mark.parametrize(("name", "exit_code"), [("qdel-finished", 35), ("qdel-unknown", 153)])
def test_cancelling_a_job_that_is_over_is_no_error(name, exit_code):
    pbs.cancelled(recorded(name, exit_code))


@pytest.mark.parametrize(("name", "exit_code"), [("deadhost-qdel", 222), ("down-qdel", 162)])
def test_cancelling_that_fails_gives_qdels_own_words(name, exit_code):
    with pytest.raises(SchedulerError, match=r"(?i)connect"):
        pbs.cancelled(recorded(name, exit_code))
    assert pbs.cancel("1.pbshead") == ["qdel", "1.pbshead"]


def test_directives_ask_for_everything_the_job_needs(tmp_path):
    machine = site(
        "pbs", "mpiexec-pals", partitions={"batch": {"kind": "queue", "name": "prod"}},
        scheduler={"select": {"system": "sample"}, "place": "scatter", "directives": ["-l filesystems=home"]},
    )  # fmt: skip
    work = job(tmp_path, machine, nodes=3, ranks_per_node=4, walltime="2-01:02:03", account="physics")
    assert pbs.directives(work) == [
        "#PBS -N sample-1",
        "#PBS -l select=3:ncpus=4:mpiprocs=4:ngpus=4:system=sample",
        "#PBS -l place=scatter",
        "#PBS -l walltime=49:02:03",
        "#PBS -q prod",
        "#PBS -A physics",
        "#PBS -j oe",
        "#PBS -k oed",
        "#PBS -o logs/attempt-1/job.log",
        "#PBS -r n",
        "#PBS -l filesystems=home",
    ]


def test_project_option_replaces_an_account_option_the_site_forbids(tmp_path):
    machine = site("pbs", "mpiexec-hydra", scheduler={"forbidden": ["-A", "-k"]})
    lines = pbs.directives(job(tmp_path, machine, account="physics"))
    assert "#PBS -P physics" in lines
    assert "#PBS -k oed" not in lines


def test_select_key_that_cannot_stand_in_a_chunk_is_refused(tmp_path):
    machine = site("pbs", "mpiexec-hydra", scheduler={"select": {"system": "a b"}})
    with pytest.raises(SiteError, match="'system=a b' cannot stand in a select chunk"):
        pbs.directives(job(tmp_path, machine))


def test_mandatory_account_is_asked_for(tmp_path, monkeypatch):
    machine = site("pbs", "mpiexec-pals", scheduler={"mandatory": ["account"], "account_variable": "PROJECT"})
    with pytest.raises(UsageError, match="takes no job without an account") as refusal:
        pbs.directives(job(tmp_path, machine))
    assert "export PROJECT" in (refusal.value.hint or "")
    monkeypatch.setenv("PROJECT", "chemistry")
    assert "#PBS -A chemistry" in pbs.directives(job(tmp_path, machine))


def test_module_is_a_scheduler():
    backend: Scheduler = pbs
    assert backend.submit(Path("/x/job.sh")) == ["qsub", "/x/job.sh"]


def test_account_variable_that_holds_no_word_is_refused(tmp_path, monkeypatch):
    machine = site("pbs", "mpiexec-pals", scheduler={"account_variable": "PROJECT"})
    monkeypatch.setenv("PROJECT", "a b\n#PBS -q other")
    with pytest.raises(UsageError, match="environment variable PROJECT"):
        pbs.directives(job(tmp_path, machine))


def test_job_that_is_not_on_a_host_any_more_but_delivers_its_files_keeps_no_exit_code():
    """The log may not be there yet."""
    assert pbs.report({"job_state": "E", "Exit_status": 3}) == Report(JobState.RUNNING, "E")
