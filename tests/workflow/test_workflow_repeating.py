"""One study submitted several times: runs of their own that differ in their seed, and one job array."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpcdl import resources
from hpcdl.errors import InfeasibleError, SchedulerError, SiteError, UsageError
from hpcdl.runs import store
from hpcdl.runs.record import RunState
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.states import following
from hpcdl.workflow.studies import preparing
from hpcdl.workflow.studies.repeating import Queueing


def test_repetitions_differ_in_their_seed_only(terminal):
    folders = preparing.prepare(
        terminal.study("generic-slurm", "training.seed=40"), terminal.runs, Queueing(repeat=3)
    )
    runs = [store.resolved(folder).model_dump() for folder in folders]
    assert [run["experiment"]["training"].pop("seed") for run in runs] == [40, 41, 42]
    assert [run.pop("run") for run in runs] == [folder.path.name for folder in folders]
    assert runs[0] == runs[1] == runs[2]
    assert store.all_runs(terminal.runs) == folders


def test_an_array_is_submitted_once_and_each_run_knows_its_element(terminal):
    folders = preparing.prepare(terminal.study(), terminal.runs, Queueing(repeat=3))
    assert submitting.submit(folders) == ["70_0", "70_1", "70_2"]
    assert terminal.submitted() == [f"{folders[0].path} --parsable {folders[0].script}"]
    assert [store.current(folder).job_id for folder in folders] == ["70_0", "70_1", "70_2"]
    assert len({folder.script.read_bytes() for folder in folders}) == 1


def test_an_element_is_found_by_its_name_and_not_by_that_of_the_array(terminal):
    folders = preparing.prepare(terminal.study(), terminal.runs, Queueing(repeat=11))
    common = folders[0].path.name.removesuffix("-0")
    assert store.find(f"{common}-1", terminal.runs) == folders[1]
    assert store.find(f"{common}-10", terminal.runs) == folders[10]
    assert store.find("last", terminal.runs) == folders[10]
    with pytest.raises(UsageError, match="may mean any of"):
        store.find(common, terminal.runs)


def test_an_element_is_resumed_alone(terminal):
    folders = preparing.prepare(terminal.study(), terminal.runs, Queueing(repeat=3))
    submitting.submit(folders)
    store.note(folders[1], "observed", 1, state="failed", reason="")
    assert submitting.resume(folders[1]) == "71"
    assert terminal.submitted()[1] == f"{folders[1].path} --parsable {folders[1].script}"
    script = folders[1].script.read_text()
    assert "ARRAY" not in script
    assert str(folders[1].path) in script
    assert [store.current(folder).number for folder in folders] == [1, 2, 1]


def test_an_element_is_cancelled_alone(terminal):
    folders = preparing.prepare(terminal.study(), terminal.runs, Queueing(repeat=3))
    submitting.submit(folders)
    terminal.answer("squeue", "printf '70_%d|RUNNING|0|None\\n' 0 1 2")
    terminal.answer("scancel", f'echo "$*" >"{terminal.folder}/cancelled"')
    submitting.cancel(folders[1])
    assert (terminal.folder / "cancelled").read_text() == "70_1\n"
    assert [store.current(folder).cancel_requested for folder in folders] == [False, True, False]
    assert [each.state for each in following.refresh(folders)] == [RunState.RUNNING] * 3


def test_a_refused_array_is_refused_in_every_folder(terminal):
    terminal.answer("sbatch", "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1")
    folders = preparing.prepare(terminal.study(), terminal.runs, Queueing(repeat=2))
    with pytest.raises(SchedulerError, match="QOSMaxSubmitJobPerUserLimit"):
        submitting.submit(folders)
    assert {store.current(folder).state for folder in folders} == {RunState.REFUSED}


def test_a_site_without_arrays_gets_a_job_for_each_run(terminal):
    study = terminal.study("local", "training.steps=1")
    folders = preparing.prepare(study, terminal.runs, Queueing(repeat=2))
    try:
        assert len(set(submitting.submit(folders))) == 2
        assert len({folder.script.read_bytes() for folder in folders}) == 2
    finally:
        for folder in folders:
            submitting.cancel(folder)


def test_a_single_repetition_is_no_array(terminal):
    (folder,) = preparing.prepare(terminal.study(), terminal.runs, Queueing(repeat=1))
    assert submitting.submit([folder]) == ["70"]
    assert "ARRAY" not in folder.script.read_text()


def test_more_than_the_site_takes_are_refused_with_its_line(terminal):
    site = terminal.folder / "small.yaml"
    bundled = resources.bundled("site_configs") / "generic-slurm.yaml"
    site.write_text(bundled.read_text().replace("kind: slurm", "kind: slurm\n  max_array: 5", 1))
    line = site.read_text().splitlines().index("  max_array: 5") + 1
    with pytest.raises(
        InfeasibleError, match=rf"--repeat 6: site generic-slurm takes at most 5 jobs .*{site}:{line}:14\)"
    ):
        preparing.prepare(terminal.study(str(site)), terminal.runs, Queueing(repeat=6))
    assert not terminal.runs.exists()
    assert len(preparing.prepare(terminal.study(str(site)), terminal.runs, Queueing(repeat=5))) == 5


def test_more_than_a_queue_takes_are_refused_with_its_line(terminal):
    site = terminal.folder / "busy.yaml"
    bundled = resources.bundled("site_configs") / "generic-slurm.yaml"
    site.write_text(bundled.read_text().replace("batch: {node: gpu", "batch: {max_jobs: 2, node: gpu", 1))
    with pytest.raises(
        InfeasibleError, match=rf"--repeat 3: queue batch takes at most 2 jobs .*{site}:\d+:21\)"
    ):
        preparing.prepare(terminal.study(str(site)), terminal.runs, Queueing(repeat=3))


def test_without_a_word_of_the_site_the_default_of_slurm_holds(terminal):
    with pytest.raises(InfeasibleError, match="at most 1000 jobs"):
        preparing.prepare(terminal.study(), terminal.runs, Queueing(repeat=1001))


@pytest.mark.parametrize(
    ("site", "repeat", "why"), [("local", 3, "no arrays"), ("generic-slurm", 1, "one run")]
)
def test_holding_back_needs_an_array(terminal, site, repeat, why):
    with pytest.raises(UsageError, match=f"--at-once 2: .*{why}"):
        preparing.prepare(terminal.study(site), terminal.runs, Queueing(repeat=repeat, at_once=2))


def test_nothing_is_left_of_runs_that_could_not_be_written(terminal):
    study = terminal.study()
    scheduler = study.site.scheduler.model_copy(update={"forbidden": ["--time"]})
    study = replace(study, site=study.site.model_copy(update={"scheduler": scheduler}))
    with pytest.raises(SiteError, match="forbids --time"):
        preparing.prepare(study, terminal.runs, Queueing(repeat=3))
    assert list(terminal.runs.iterdir()) == []
