"""A job whose id nobody has noted is asked for by its name, and the answer gives the id as submitting did."""

from __future__ import annotations

from dataclasses import replace

import pytest
from schedulers.sample import head, job, site

from hpcdl.errors import NoAnswerError, SchedulerError
from hpcdl.schedulers import flux, local, lsf, pbs, slurm
from hpcdl.schedulers.base import Array, Naming
from hpcdl.schedulers.directives import job_name, name_of
from hpcdl.schedulers.known import SCHEDULERS, scheduler
from hpcdl.shell import Completed

KINDS = ("slurm", "pbs", "lsf", "flux")


def said(stdout="", stderr="", exit_code=0):
    return Completed(exit_code, stdout, stderr)


def at(kind, **scheduler_keys):
    machine = site(kind)
    return machine.model_copy(update={"scheduler": machine.scheduler.model_copy(update=scheduler_keys)})


def asked(naming: Naming, kind="slurm", **keys):
    return naming.command("run-1", "ada", at(kind, **keys))


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_attempt_has_another_name_which_the_script_asks_for(tmp_path, kind):
    first = job(tmp_path, site(kind))
    second = replace(first, attempt=2)
    assert job_name(first) == first.run.run
    assert job_name(second) == f"{first.run.run}.2"
    assert sum(f"{first.run.run}.2" in line for line in head(scheduler(kind), second)) == 1


def test_an_array_has_the_name_that_its_elements_share(tmp_path):
    whole = job(tmp_path / "run-0", site())
    whole = replace(
        whole,
        run=whole.run.model_copy(update={"run": "run-0"}),
        array=Array((tmp_path / "run-0", tmp_path / "run-1")),
    )
    assert job_name(whole) == "run"
    assert name_of("run-0", 3, in_array=False) == "run-0.3"


def test_slurm_is_asked_at_the_sites_own_cluster():
    (naming,) = slurm.NAMINGS
    assert asked(naming) == [
        "squeue", "--noheader", "--states=all", "--user=ada", "--name=run-1", "--Format=ArrayJobID:40",
    ]  # fmt: skip
    assert "--clusters=escher" in asked(naming, cluster="escher")
    rows = said("CLUSTER: escher\n12                  \n12                  \n")
    assert naming.parse(rows, at("slurm", cluster="escher")) == ["12;escher"]
    assert naming.parse(said("12 \n12 \n12 \n"), at("slurm")) == ["12"]
    assert naming.parse(said(), at("slurm")) == []


def test_pbs_is_asked_with_its_history_and_without():
    """A server that keeps none answers nothing to -x, and exits with 0 (recorded)."""
    with_history, now = pbs.NAMINGS
    assert asked(with_history, "pbs") == ["qselect", "-x", "-u", "ada", "-N", "run-1"]
    assert asked(now, "pbs") == ["qselect", "-u", "ada", "-N", "run-1"]
    none = said("", "qselect: PBS is not configured to maintain job history\n")
    assert with_history.parse(none, at("pbs")) == []
    assert now.parse(said("53.pbshead\n"), at("pbs")) == ["53.pbshead"]
    assert now.parse(said("54[].pbshead\n"), at("pbs")) == ["54[].pbshead"]


def test_lsf_names_an_array_once():
    (naming,) = lsf.NAMINGS
    assert asked(naming, "lsf") == ["bjobs", "-a", "-noheader", "-u", "ada", "-J", "run-1", "-o", "jobid"]
    assert naming.parse(said("123\n123\n123\n"), at("lsf")) == ["123"]
    assert naming.parse(said("123[1]\n123[2]\n"), at("lsf")) == ["123"]
    assert naming.parse(said("", "Job <run-1> is not found\n", 255), at("lsf")) == []


def test_flux_lists_jobs_that_are_over_too():
    (naming,) = flux.NAMINGS
    assert asked(naming, "flux") == ["flux", "jobs", "-a", "--user=ada", "--name=run-1", "--json"]
    assert naming.parse(said('{"jobs": [{"jobid": "ƒ58"}]}'), at("flux")) == ["f58"]
    assert naming.parse(said('{"jobs": []}'), at("flux")) == []


AWAY = {
    "slurm": said("", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)", 1),
    "pbs": said("", "Connection refused\nqselect: cannot connect to server pbshead (errno=15010)", 162),
    "lsf": said("", "LSF is down. Please wait ...", 255),
    "flux": said("", "flux-jobs: ERROR: Unable to connect to Flux: broker socket was not found", 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_scheduler_that_is_away_does_not_say_that_there_is_no_job(kind):
    for naming in scheduler(kind).NAMINGS:
        with pytest.raises(SchedulerError, match="does not answer") as caught:
            naming.parse(AWAY[kind], at(kind))
        assert "nothing was changed" in caught.value.hint


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_is_none_does_not_say_that_there_is_no_job(kind):
    for naming in scheduler(kind).NAMINGS:
        with pytest.raises(SchedulerError):
            naming.parse(said("", "", 1), at(kind))
    for kind_of, text in (("slurm", "hello"), ("pbs", "hello"), ("flux", "hello")):
        with pytest.raises(SchedulerError):
            scheduler(kind_of).NAMINGS[0].parse(said(text), at(kind_of))


def test_on_this_machine_only_the_script_tells():
    assert local.NAMINGS == ()


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize(
    "answer",
    [said("== welcome, your job was accepted =="), said(exit_code=-9), said("a banner", exit_code=-15)],
)
def test_a_client_that_told_no_job_id_or_was_killed_may_have_submitted_the_job(kind, answer):
    """A site's wrapper took the job and printed a banner: it was called refused, and resuming made a second."""
    with pytest.raises(NoAnswerError):
        scheduler(kind).submitted(answer)
