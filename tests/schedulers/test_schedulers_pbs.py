"""PBS: what it is asked, and what its recorded answers mean."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedulers.sample import head, job, site

from hpcdl.errors import NoAnswerError, SchedulerError, SiteError, UsageError
from hpcdl.schedulers import pbs, pbs_answers
from hpcdl.schedulers.base import After, Array, JobState, Report, Scheduler
from hpcdl.schedulers.script import render
from hpcdl.shell import Completed
from hpcdl.sites.site import Site

RECORDINGS = Path(__file__).parent / "recordings"
INDEX = json.loads((RECORDINGS / "index.json").read_text(encoding="utf-8"))
BY_JSON, BY_TEXT, BY_TEXT_NOW = pbs.QUERIES


def recorded(name: str, exit_code: int = 0) -> Completed:
    """A recorded answer, decoded as hpcdl.shell decodes."""
    out, err = RECORDINGS / f"{name}.out", RECORDINGS / f"{name}.err"
    assert name in INDEX
    texts = [path.read_bytes().decode("utf-8", "replace") if path.exists() else "" for path in (out, err)]
    return Completed(exit_code, *texts)


def outcome(seen: Report) -> str:
    """A report in the words of the index."""
    code = "" if seen.exit_code is None else f" {seen.exit_code}"
    signal = "" if seen.signal is None else f" by signal {seen.signal}"
    return f"{seen.state.value}{code}{signal}"


def told(parser: str, answer: Completed) -> str | dict[str, str]:
    """What a parser makes of an answer, in the words of the index."""
    if parser == "qsub":
        return pbs.submitted(answer)
    if parser == "qdel":
        pbs.cancelled(answer)
        return "done"
    parse = pbs_answers.parse_json if parser == "json" else pbs_answers.parse_text
    return {job_id: outcome(seen) for job_id, seen in parse(answer).items()}


@pytest.mark.parametrize("name", [name for name, entry in INDEX.items() if "parser" in entry])
def test_recorded_answer_means_what_happened(name):
    """Every answer that a parser may meet: submissions, refusals, deletions and states."""
    parser, expected, code = (INDEX[name][key] for key in ("parser", "expect", "exit"))
    if isinstance(expected, str) and expected.startswith("refused: "):
        with pytest.raises(SchedulerError, match=re.escape(expected.removeprefix("refused: "))):
            told(parser, recorded(name, code))
    else:
        assert told(parser, recorded(name, code)) == expected


def test_every_recording_stands_in_the_index():
    files = {path.stem for path in RECORDINGS.iterdir() if path.suffix in (".out", ".err")}
    assert files <= INDEX.keys()
    for name, entry in INDEX.items():
        assert name in files or entry.get("parser") in ("qdel", None), name


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
    seen = pbs_answers.report({"job_state": "?", "comment": "strange"})
    assert seen == Report(JobState.UNKNOWN, "?: strange")
    assert not seen.state.over


@pytest.mark.parametrize(("status", "state"), [(-27, JobState.OUT_OF_MEMORY), (-99, JobState.FAILED)])
def test_negative_codes_are_what_pbs_did(status, state):
    seen = pbs_answers.report({"job_state": "F", "Exit_status": status})
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
        ("qsub-server-env", 160, "cannot connect to server"),
    ],
)
def test_refusal_gives_qsubs_own_words_and_a_server_that_is_away_refuses_nothing(name, exit_code, words):
    with pytest.raises(SchedulerError, match=words) as refusal:
        pbs.submitted(recorded(name, exit_code))
    assert isinstance(refusal.value, NoAnswerError) == (words == "cannot connect to server")


@pytest.mark.parametrize("error", [15031, 15033, 15034, 15060])
def test_a_qsub_that_lost_its_connection_may_have_submitted_the_job(error):
    """The server may have committed the job before: PBSE_PROTOCOL and the like, as clients exit with them."""
    with pytest.raises(NoAnswerError, match="PBS does not answer: qsub: "):
        pbs.submitted(Completed(error % 256, "", f"qsub: (errno={error})"))


def test_submission_without_an_id_is_an_error():
    with pytest.raises(SchedulerError, match="no job id"):
        pbs.submitted(Completed(0, "", ""))


@pytest.mark.parametrize(("name", "exit_code"), [("qdel-finished", 35), ("qdel-unknown", 153)])
def test_cancelling_a_job_that_is_over_is_no_error(name, exit_code):
    pbs.cancelled(recorded(name, exit_code))


@pytest.mark.parametrize(("name", "exit_code"), [("deadhost-qdel", 222), ("down-qdel", 162)])
def test_cancelling_that_fails_gives_qdels_own_words(name, exit_code):
    with pytest.raises(SchedulerError, match=r"(?i)connect") as refusal:
        pbs.cancelled(recorded(name, exit_code))
    assert ("qdel -W force" in (refusal.value.hint or "")) == (name == "deadhost-qdel")
    assert pbs.cancel("1.pbshead") == ["qdel", "1.pbshead"]


def test_directives_ask_for_everything_the_job_needs(tmp_path):
    machine = site(
        "pbs", "mpiexec-pals", partitions={"batch": {"kind": "queue", "name": "prod"}},
        scheduler={"select": {"system": "sample"}, "place": "scatter", "directives": ["-l filesystems=home"]},
    )  # fmt: skip
    work = job(tmp_path, machine, nodes=3, ranks_per_node=4, walltime="2-01:02:03", account="physics")
    assert head(pbs, work) == [
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
    lines = head(pbs, job(tmp_path, machine, account="physics"))
    assert "#PBS -P physics" in lines
    assert "#PBS -k oed" not in lines


def test_select_key_that_cannot_stand_in_a_chunk_is_refused(tmp_path):
    machine = site("pbs", "mpiexec-hydra", scheduler={"select": {"system": "a b"}})
    with pytest.raises(SiteError, match="'system=a b' cannot stand in a select chunk"):
        head(pbs, job(tmp_path, machine))


def test_mandatory_account_is_asked_for(tmp_path, monkeypatch):
    machine = site("pbs", "mpiexec-pals", scheduler={"mandatory": ["account"], "account_variable": "PROJECT"})
    with pytest.raises(UsageError, match="takes no job without an account") as refusal:
        head(pbs, job(tmp_path, machine))
    assert "export PROJECT" in (refusal.value.hint or "")
    monkeypatch.setenv("PROJECT", "chemistry")
    assert "#PBS -A chemistry" in head(pbs, job(tmp_path, machine))


def test_module_is_a_scheduler():
    backend: Scheduler = pbs
    assert backend.submit(Path("/x/job.sh")) == ["qsub", "/x/job.sh"]


def test_account_variable_that_holds_no_word_is_refused(tmp_path, monkeypatch):
    machine = site("pbs", "mpiexec-pals", scheduler={"account_variable": "PROJECT"})
    monkeypatch.setenv("PROJECT", "a b\n#PBS -q other")
    with pytest.raises(UsageError, match="environment variable PROJECT"):
        head(pbs, job(tmp_path, machine))


def test_job_that_is_not_on_a_host_any_more_but_delivers_its_files_keeps_no_exit_code():
    """The log may not be there yet."""
    assert pbs_answers.report({"job_state": "E", "Exit_status": 3}) == Report(JobState.RUNNING, "E")


def line(machine: Site, tmp_path: Path, option: str, **asked) -> str:
    """The one directive of a job that begins with ``option``."""
    (found,) = [
        text for text in head(pbs, job(tmp_path, machine, **asked)) if text.startswith(f"#PBS {option}")
    ]
    return found


def test_cpus_are_the_hardware_threads_and_memory_goes_with_the_devices(tmp_path):
    machine = site(
        "pbs",
        "mpiexec-pals",
        scheduler={"memory_per_device": "1.5GiB"},
        nodes={"gpu": {"threads_per_core": 2}},
    )
    assert line(machine, tmp_path, "-l select") == "#PBS -l select=1:ncpus=4:mpiprocs=2:ngpus=2:mem=3gb"


@pytest.mark.parametrize(
    ("each", "ranks", "expected"), [("512MiB", 1, "512mb"), ("1GiB", 3, "3gb"), ("1000", 3, "3kb")]
)
def test_memory_is_written_without_the_fraction_that_pbs_refuses(tmp_path, each, ranks, expected):
    machine = site("pbs", "mpiexec-pals", scheduler={"memory_per_device": each})
    assert line(machine, tmp_path, "-l select", ranks_per_node=ranks).endswith(f":mem={expected}")


def test_site_that_fixes_what_a_node_gives_is_asked_for_nothing_of_it(tmp_path):
    """As on a machine whose queue is the kind of node."""
    machine = site("pbs", "mpiexec-openmpi", scheduler={"forbidden": ["ncpus", "ngpus", "-A"]})
    assert line(machine, tmp_path, "-l select", nodes=2) == "#PBS -l select=2:mpiprocs=2"
    assert line(machine, tmp_path, "-P", account="group") == "#PBS -P group"


def test_pbsdsh_starts_one_task_a_host(tmp_path):
    machine = site("pbs", "pbsdsh", scheduler={"place": "scatter:excl"})
    assert ":mpiprocs=1:" in line(machine, tmp_path, "-l select", ranks_per_node=4)


@pytest.mark.parametrize("place", [None, "free", "pack"])
def test_pbsdsh_wants_each_chunk_on_a_host_of_its_own(tmp_path, place):
    with pytest.raises(SiteError, match="each chunk must be on a host of its own") as refusal:
        render(job(tmp_path, site("pbs", "pbsdsh", scheduler={"place": place})))
    assert refusal.value.hint == "set scheduler.place: scatter"


def test_pbsdsh_starts_no_mpi_ranks(tmp_path):
    machine = site("pbs", "pbsdsh", scheduler={"place": "scatter"})
    with pytest.raises(SiteError, match="launcher pbsdsh starts no MPI ranks"):
        render(job(tmp_path, machine, transport="mpi"))


def test_pbsdsh_belongs_to_pbs(tmp_path):
    with pytest.raises(SiteError, match="launcher pbsdsh is part of PBS, and the scheduler is slurm"):
        render(job(tmp_path, site("slurm", "pbsdsh")))


def test_ranks_of_a_host_are_bound_to_the_cores_near_their_devices(tmp_path):
    near = {"gpu": {"device_cores": ["0-1", "2-3", "4-5", "6-7"]}}
    machine = site(
        "pbs", "pbsdsh", scheduler={"place": "scatter"}, nodes=near, launch={"cpu_bind": "near-device"}
    )
    script = render(job(tmp_path, machine, nodes=2, ranks_per_node=4))
    assert "LOCAL_RANK 'taskset -c 0-1' 'taskset -c 2-3' 'taskset -c 4-5' 'taskset -c 6-7' -- " in script


def test_place_that_is_no_word_is_refused(tmp_path):
    machine = site("pbs", "mpiexec-pals", scheduler={"place": "scatter\n#PBS -q other"})
    with pytest.raises(SiteError, match=r"scheduler.place .* cannot stand in a directive"):
        head(pbs, job(tmp_path, machine))


@pytest.mark.parametrize(
    ("ending", "kind"), [("ok", "afterok"), ("failed", "afternotok"), ("any", "afterany")]
)
def test_job_that_waits_for_others_names_them(tmp_path, ending, kind):
    work = replace(job(tmp_path, site("pbs", "mpiexec-pals")), after=After(ending, ("72.s", "73[].s")))
    assert f"#PBS -W depend={kind}:72.s:73[].s" in head(pbs, work)


def test_parent_that_is_no_job_id_is_refused(tmp_path):
    work = replace(job(tmp_path, site("pbs", "mpiexec-pals")), after=After("ok", ("1,afterany:2",)))
    with pytest.raises(UsageError, match=r"--after: '1,afterany:2' is no job id of PBS"):
        head(pbs, work)


def test_array_counts_from_0_and_is_not_asked_whether_it_may_run_again(tmp_path):
    """qsub refuses an array with -r n, in the recorded words: cannot submit non-rerunable Array Job."""
    work = job(tmp_path, site("pbs", "mpiexec-pals"))
    lines = head(pbs, replace(work, array=Array((tmp_path,) * 4, at_once=2)))
    assert "#PBS -J 0-3%2" in lines
    assert not any(text.startswith("#PBS -r") for text in lines)
    assert "#PBS -J 0-1" in head(pbs, replace(work, array=Array((tmp_path,) * 2)))


def test_array_of_one_is_refused_before_qsub_does(tmp_path):
    work = replace(job(tmp_path, site("pbs", "mpiexec-pals")), array=Array((tmp_path,)))
    with pytest.raises(UsageError, match="PBS has no array of one element"):
        head(pbs, work)


def test_element_is_named_by_its_index():
    assert pbs.element("72[].server.domain", 3) == "72[3].server.domain"


def test_one_job_is_asked_for_by_its_id_and_several_without():
    assert BY_JSON.command(["1.s"]) == ["qstat", "-x", "-f", "-F", "json", "1.s"]
    assert BY_JSON.command(["1.s", "2[].s"]) == ["qstat", "-x", "-f", "-F", "json"]
    assert BY_JSON.command(["1.s", "2[0].s"]) == ["qstat", "-x", "-t", "-f", "-F", "json"]
    assert BY_TEXT_NOW.command(["1.s", "2.s"]) == ["qstat", "-f", "1.s", "2.s"]


def test_job_that_its_dependency_deleted_says_so():
    (seen,) = BY_JSON.parse(recorded("dep-fail-afterok-end-json")).values()
    assert seen.words == (
        "deleted before it ran: PBS could not fulfil its dependency afterok:83.pbshead@pbshead"
    )


def test_job_that_waits_for_others_says_for_which_and_what_may_become_of_it():
    (seen,) = BY_JSON.parse(recorded("dep-multi-waiting-json")).values()
    assert seen.words.startswith("H: waits for 111.pbshead, 112.pbshead; if that is deleted")


def test_child_of_a_parent_that_never_ran_is_told_to_wait_for_ever():
    """Recorded apart; in one answer, as where all jobs are asked for."""
    jobs = {}
    for name in ("dep-qdel-parent-end-json", "dep-qdel-afterany-end-json"):
        jobs |= json.loads(recorded(name).stdout)["Jobs"]
    seen = BY_JSON.parse(Completed(0, json.dumps({"Jobs": jobs}), ""))
    assert seen["96.pbshead"].state is JobState.QUEUED
    assert "93.pbshead was deleted before it ran" in seen["96.pbshead"].words
    assert "cancel this one" in seen["96.pbshead"].words


def test_exit_code_of_a_shell_above_names_the_signal_below():
    (seen,) = BY_JSON.parse(recorded("final-segv")).values()
    assert seen.words == "exit code 139: something in the script was killed by SIGSEGV"


@pytest.mark.parametrize(
    "answer",
    ["[]", "3", "[" * 100_000, '{"Jobs": []}', '{"Jobs": {"1.s": 5}}', '{"Jobs": {"1.s": {}}}', '{"Jobs": {"1.s": null}}',
     '{"Jobs": {"1.s": {"job_state": ["F"], "substate": {}}}}', '{"Jobs": {"1.s": {"job_state": "F", "Exit_status": "x"}}}'],
)  # fmt: skip
def test_json_that_is_no_answer_of_qstats_is_no_end(answer):
    assert all(not seen.state.over for seen in BY_JSON.parse(Completed(0, answer, "")).values())


@pytest.mark.parametrize("query", [BY_TEXT, BY_TEXT_NOW])
def test_garbage_is_an_error_with_its_own_words_and_no_end(query):
    with pytest.raises(SchedulerError, match="qstat printed no jobs: <html>502 Bad Gateway"):
        query.parse(Completed(0, "<html>502 Bad Gateway</html>\n", ""))


@given(st.text(), st.sampled_from([0, 35, 153]), st.sampled_from(pbs.QUERIES))
def test_no_text_breaks_a_parser(text, code, query):
    with contextlib.suppress(SchedulerError):
        query.parse(Completed(code, text, text))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_NAMES = st.sampled_from(["job_state", "substate", "Exit_status", "comment", "depend", "array", "run_count"])


@given(st.dictionaries(_NAMES, _VALUES | st.sampled_from(["F", "X", "H", 22, 91, 92])))
def test_no_value_of_an_attribute_breaks_a_report(attributes):
    seen = pbs_answers.report(attributes)
    assert not seen.state.over or attributes.get("job_state") in ("F", "X")
