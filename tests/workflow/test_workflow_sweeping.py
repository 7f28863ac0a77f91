"""Sweeps prepared and handed over to a scheduler that answers as it is told."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workflow.sweeps import directive, scripts, sent, small_site, swept

from hpcdl.errors import InfeasibleError, SchedulerError, SiteError, UsageError
from hpcdl.planner.plan import plan
from hpcdl.runs import claims, store
from hpcdl.runs.record import RunState
from hpcdl.runs.sweeps import groups
from hpcdl.schedulers.base import After
from hpcdl.sites.load import load_site
from hpcdl.spec import load, reading
from hpcdl.telemetry import RunEvent, append
from hpcdl.workflow.states.following import refresh
from hpcdl.workflow.studies.preparing import render
from hpcdl.workflow.sweeps import arrays, dispatching, sweeping
from hpcdl.workflow.sweeps.dispatching import WAITING


def test_points_that_ask_the_same_are_one_array_each_in_its_own_folder(terminal):
    group, done = sent(terminal, "{grid: {training.seed: [5, 6, 7], training.optimizer.lr: [0.1, 0.2]}}")
    assert done.jobs == {"70": 6}
    assert [store.current(folder).job_id for folder in group.folders] == [f"70_{index}" for index in range(6)]
    assert len({folder.script.read_bytes() for folder in group.folders}) == 1
    told = [store.resolved(folder).experiment.training for folder in group.folders]
    assert [(each.seed, each.optimizer.lr) for each in told] == [
        (5, 0.1), (5, 0.2), (6, 0.1), (6, 0.2), (7, 0.1), (7, 0.2)
    ]  # fmt: skip
    links = [group.place / "0" / f"{group.name}-a0-{index}" for index in range(6)]
    assert [link.readlink() for link in links] == [folder.path for folder in group.folders]


def test_each_folder_holds_the_file_as_given_and_the_values_of_its_point(terminal):
    group, _ = sent(terminal, "{zip: {training.seed: [5, 6], model.layers: [2, 4]}}")
    for folder, values in zip(group.folders, group.points.values(), strict=True):
        assert folder.experiment.read_bytes() == terminal.file.read_bytes()
        (created, *_) = store.events(folder)
        assert (created.kind, created.detail["group"], created.detail["point"]) == (
            "created",
            group.name,
            values,
        )
        assert store.resolved(folder).run == folder.path.name
    assert list(group.points.values()) == [
        {"training.seed": 5, "model.layers": 2}, {"training.seed": 6, "model.layers": 4}
    ]  # fmt: skip
    assert groups.read(terminal.runs, group.name) == group


def test_points_that_ask_for_something_else_are_jobs_of_their_own(terminal):
    _, done = sent(
        terminal,
        "{zip: {resources.walltime: ['00:05:00', '00:06:00', '00:05:00'], training.seed: [1, 2, 3]}}",
    )
    assert done.jobs == {"70": 2, "71": 1}
    array, alone = scripts(terminal)
    assert directive(array, "--array") == "=0-1"
    assert directive(array, "--time") == "=0-00:05:00"
    assert directive(alone, "--array") is None
    assert directive(alone, "--time") == "=0-00:06:00"


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 12), limit=st.integers(2, 6))
def test_every_point_is_submitted_once_whatever_the_limit_of_an_array(terminal, size, limit):
    site = small_site(terminal, "kind: slurm", f"kind: slurm\n  max_array: {limit}")
    group, done = sent(terminal, f"{{grid: {{training.seed: {list(range(size))}}}}}", site=site)
    job_ids = [store.current(folder).job_id for folder in group.folders]
    assert len(set(job_ids)) == len(job_ids) == size == done.points
    assert max(done.jobs.values()) <= limit
    assert len(done.jobs) == -(-size // limit)
    indices = [int(job_id.partition("_")[2] or 0) for job_id in job_ids]
    assert indices == [number % limit for number in range(size)]


def test_arrays_wait_for_each_other_so_that_at_once_holds_for_all(terminal):
    site = small_site(terminal, "kind: slurm", "kind: slurm\n  max_array: 4")
    group, _ = sent(terminal, f"{{grid: {{training.seed: {list(range(9))}}}, at_once: 2}}", site=site)
    told = [(directive(each, "--array"), directive(each, "--dependency")) for each in scripts(terminal)]
    assert told == [("=0-3%2", None), ("=0-3%2", "=afterany:70"), (None, "=afterany:71")]
    assert store.current(group.folders[8]).wait == f"for {group.name} to end"


def test_a_queue_that_takes_few_jobs_gets_as_many_and_the_rest_later(terminal):
    site = small_site(terminal, "batch: {node: gpu", "batch: {max_jobs: 3, node: gpu")
    group, done = sent(terminal, "{grid: {training.seed: [1, 2, 3, 4, 5]}}", site=site)
    assert (done.jobs, len(done.left)) == ({"70": 3}, 2)
    assert [store.current(folder).state for folder in group.folders] == [RunState.QUEUED] * 3 + [
        RunState.PREPARED
    ] * 2
    members = dispatching.chosen(group.folders, WAITING)
    assert dispatching.send(group, members) == dispatching.Sent({}, members)
    for folder in group.folders[:2]:
        store.note(folder, "observed", 1, state="completed", reason="")
    assert dispatching.send(group, dispatching.chosen(group.folders, WAITING)).jobs == {"71": 2}


def test_only_points_that_failed_are_submitted_again_and_as_an_array(terminal):
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2, 3, 4, 5]}}")
    ends = ["failed", "completed", "timeout", "cancelled", "paused"]
    for folder, state in zip(group.folders, ends, strict=True):
        store.note(folder, "observed", 1, state=state, reason="")
    members = dispatching.chosen(group.folders, dispatching.FAILED)
    assert [(member.folder, member.attempt) for member in members] == [
        (group.folders[0], 2), (group.folders[2], 2)
    ]  # fmt: skip
    assert dispatching.send(group, members).jobs == {"71": 2}
    assert [store.current(folder).job_id for folder in group.folders] == [
        "71_0",
        "70_1",
        "71_1",
        "70_3",
        "70_4",
    ]
    again = scripts(terminal)[1]
    assert "/logs/attempt-2/" in directive(again, "--output")
    assert [link.readlink() for link in sorted((group.place / "1").iterdir())] == [
        group.folders[0].path, group.folders[2].path
    ]  # fmt: skip
    assert [member.folder for member in dispatching.chosen(group.folders, WAITING)] == [group.folders[4]]


def test_two_who_submit_the_same_points_at_once_submit_each_once(terminal):
    group = sweeping.prepare(swept(terminal, "{grid: {training.seed: [1, 2, 3]}}"), terminal.runs)
    mine, theirs = (dispatching.chosen(group.folders, WAITING) for _ in range(2))
    assert dispatching.send(group, theirs[:1]).jobs == {"70": 1}
    done = dispatching.send(group, mine)
    assert (done.jobs, done.taken) == ({"71": 2}, 1)
    assert [store.current(folder).job_id for folder in group.folders] == ["70", "71_0", "71_1"]
    assert dispatching.send(group, theirs).taken == 3


def test_the_name_that_is_looked_for_after_a_lost_answer_is_that_of_the_array(terminal):
    group = sweeping.prepare(swept(terminal, "{grid: {training.seed: [1, 2]}}"), terminal.runs)
    terminal.answer("sbatch", '[ "$1" = --test-only ] || { echo "no answer" >&2; echo; }')
    with pytest.raises(SchedulerError):
        dispatching.send(group, dispatching.chosen(group.folders, WAITING))
    for folder in group.folders:
        (name,) = {event.detail["job_name"] for event in store.events(folder) if event.kind == "submitting"}
        assert name == f"{group.name}-a0"
        assert f"--job-name={name}\n" in folder.script.read_text()


def test_points_are_kept_off_the_nodes_that_they_found_bad_themselves(terminal):
    """Whatever the first point of an array was told held for all of them: the second went back to n7."""
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2, 3]}}")
    for folder in group.folders:
        store.note(folder, "observed", 1, state="failed", reason="")
    append(group.folders[1].engine_events, RunEvent("bad node", 0.0, 1, {"host": "n7", "why": "slow"}))
    again = dispatching.send(group, dispatching.chosen(group.folders, dispatching.FAILED))
    assert again.jobs == {"71": 2, "72": 1}
    assert [directive(script, "--exclude") for script in scripts(terminal)] == [None, None, "=n7"]


@pytest.mark.parametrize("link", ["claim", "start"])
def test_a_folder_that_cannot_be_written_is_no_point_that_somebody_else_submits(terminal, link):
    """A full disk was told as other people's submissions, with exit code 0."""
    group = sweeping.prepare(swept(terminal, "{grid: {training.seed: [1, 2]}}"), terminal.runs)
    first = group.folders[0]
    store.note(first, "broken off", 1, reason="")
    members = dispatching.chosen(group.folders, WAITING)
    getattr(first, link)(1).parent.write_text("no folder can be made here")
    with pytest.raises(UsageError, match="cannot write") as caught:
        dispatching.send(group, members)
    assert f"hpcdl resume {group.name} submits the rest" in caught.value.hint
    assert terminal.submitted() == []


def test_an_aborted_preparation_leaves_no_runs(terminal, monkeypatch):
    """Ctrl-C left runs of no sweep, which nobody could name together any more."""
    found, filled = swept(terminal, "{grid: {training.seed: [1, 2, 3]}}"), []

    def fill(folder, planned, group):
        filled.append(folder)
        if len(filled) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "_fill", fill)
    with pytest.raises(KeyboardInterrupt):
        sweeping.prepare(found, terminal.runs)
    assert list(terminal.runs.iterdir()) == []


def test_points_that_wait_for_other_runs_say_so_before_anything_is_written(terminal):
    after = After("ok", ("99",))
    free = arrays.drafts(swept(terminal, "{grid: {training.seed: [1, 2, 3]}}"), terminal.runs, after)
    assert [directive(render(work), "--dependency") for _, work in free] == ["=afterok:99"]
    site = small_site(terminal, "kind: slurm", "kind: slurm\n  max_array: 2")
    held = swept(terminal, "{grid: {training.seed: [1, 2, 3]}, at_once: 1}", site=site)
    with pytest.raises(UsageError, match="wait for each other already"):
        arrays.drafts(held, terminal.runs, after)
    assert not terminal.runs.exists()


def test_an_array_of_which_no_answer_was_noted_is_looked_for_once(terminal):
    """Each of a thousand elements asked the controller for the same name."""
    group = sweeping.prepare(swept(terminal, "{grid: {training.seed: [1, 2, 3]}}"), terminal.runs)
    for index, folder in enumerate(group.folders):
        store.note(folder, "submitting", 1, job_name=f"{group.name}-a0", element=index)
    asked = terminal.folder / "asked"
    names = f'case "$*" in *--name=*) echo "$*" >>"{asked}"; echo 70 ;; esac'
    terminal.answer("squeue", names)
    assert [each.job_id for each in refresh(group.folders)] == ["70_0", "70_1", "70_2"]
    assert len(asked.read_text().splitlines()) == 1


def test_points_at_different_attempts_are_different_arrays(terminal):
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2, 3, 4]}}")
    for folder in group.folders:
        store.note(folder, "observed", 1, state="failed", reason="")
    for folder in group.folders[:2]:
        store.note(folder, "submitted", 2, job_id="9")
        store.note(folder, "observed", 2, state="failed", reason="")
    done = dispatching.send(group, dispatching.chosen(group.folders, dispatching.FAILED))
    assert done.jobs == {"71": 2, "72": 2}
    assert [store.current(folder).number for folder in group.folders] == [3, 3, 2, 2]


def test_what_was_submitted_earlier_counts_for_at_once(terminal):
    group, _ = sent(terminal, "{grid: {training.seed: [1, 2, 3, 4]}, at_once: 2}")
    store.note(group.folders[0], "observed", 1, state="failed", reason="")
    terminal.answer("squeue", "printf '70_%d|RUNNING|0|None\\n' 1 2 3")
    dispatching.send(group, dispatching.chosen(group.folders, dispatching.FAILED))
    assert directive(scripts(terminal)[1], "--dependency") == "=afterany:70"


def test_a_refused_array_is_refused_and_the_message_says_what_is_in_the_queue(terminal):
    site = small_site(terminal, "kind: slurm", "kind: slurm\n  max_array: 2")
    listed = terminal.folder / "submitted"
    terminal.answer(
        "sbatch",
        f'[ "$1" = --test-only ] && exit; echo "$PWD $*" >>"{listed}"; n=$(wc -l <"{listed}"); '
        '[ "$n" = 1 ] && echo 70 || { echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }',
    )
    group = sweeping.prepare(
        swept(terminal, "{grid: {training.seed: [1, 2, 3, 4, 5, 6]}}", site=site), terminal.runs
    )
    with pytest.raises(SchedulerError, match="QOSMaxSubmitJobPerUserLimit") as caught:
        dispatching.send(group, dispatching.chosen(group.folders, WAITING))
    assert f"2 points are in the queue; hpcdl resume {group.name} submits the rest" in caught.value.hint
    states = [store.current(folder).state.value for folder in group.folders]
    assert states == ["queued"] * 2 + ["refused"] * 2 + ["prepared"] * 2
    assert [member.attempt for member in dispatching.chosen(group.folders, WAITING)] == [2, 2, 1, 1]


def test_points_without_a_script_are_not_claimed(terminal, monkeypatch):
    """A claim is never given back: it would leave an attempt of which nothing comes."""
    group = sweeping.prepare(
        swept(terminal, "{zip: {training.seed: [1, 2]}}", site="generic-flux"), terminal.runs
    )
    (terminal.folder / "templates").mkdir()
    (terminal.folder / "templates" / "flux.sh.j2").write_text("{{ nothing }}")
    monkeypatch.setenv("HPCDL_PATH", str(terminal.folder))
    with pytest.raises(SiteError, match=r"template flux.sh.j2"):
        dispatching.send(group, dispatching.chosen(group.folders, WAITING))
    assert [claims.claims(folder) for folder in group.folders] == [{}, {}]


def test_every_infeasible_point_is_told_and_the_others_can_go(terminal):
    found = swept(terminal, "{grid: {parallelism.data: [2, 3], training.seed: [0, 1]}}")
    assert isinstance(found.refusal, InfeasibleError)
    (line,) = found.refusal.message.splitlines()
    assert "= 3 ranks, but the job has 2 devices" in line
    assert line.endswith("(in point parallelism.data=3, training.seed=0 and 1 other)")
    assert found.refusal.hint == "--skip-infeasible submits the other 2"
    assert [each.values["training.seed"] for each in found.feasible] == [0, 1]


def test_data_that_are_not_there_are_told_of_every_point_before_anything_is_written(terminal):
    with pytest.raises(
        UsageError, match=r"data.path .*gone.txt does not exist \(in point data.path=gone.txt\)"
    ):
        swept(terminal, "{grid: {data.path: [corpus.txt, gone.txt]}}")
    assert not terminal.runs.exists()


@pytest.mark.parametrize(
    "change",
    [
        "name=other", "training.seed=9", "training.steps=77", "training.optimizer.lr=0.5",
        "training.optimizer.betas=[0.5, 0.6]", "training.optimizer.weight_decay=0.7", "training.optimizer.warmup=3",
        "training.loss_scale.initial=8", "environment.A=b", "checkpoint.every=3", "metrics.tensorboard=true",
    ],
)  # fmt: skip
def test_what_the_planner_is_not_asked_again_for_changes_nothing_of_a_plan(terminal, change):
    """``sweeping.planned_part`` leaves these keys out; were one of them to matter, a plan would be wrong."""
    site = load_site("generic-slurm")

    def made(*settings):
        document = load.read(terminal.file)
        load.override(document, ["parallelism=auto", *settings])
        return reading.experiment(document)

    before, after = made(), made(change)
    assert before != after
    assert sweeping.planned_part(before) == sweeping.planned_part(after)
    first, second = (
        plan(each, site, 4).to_json() | {"search_seconds": 0, "experiment": ""} for each in (before, after)
    )
    assert json.dumps(first) == json.dumps(second)


@pytest.mark.slow
def test_two_thousand_and_five_hundred_points_are_three_arrays_in_less_than_a_minute(terminal):
    started = time.process_time()  # the machine may be busy with something else
    site = small_site(terminal, "kind: slurm", "kind: slurm\n  max_array: 1001")
    group, done = sent(
        terminal,
        "{random: {points: 2500, keys: {training.optimizer.lr: {log_uniform: [1.0e-5, 1.0e-1]}, "
        "training.seed: {integers: [0, 1000000]}}}}",
        site=site,
    )
    taken = time.process_time() - started
    assert sorted(done.jobs.values()) == [498, 1001, 1001]
    job_ids = [store.current(folder).job_id for folder in group.folders]
    assert len(set(job_ids)) == 2500
    assert max(int(job_id.partition("_")[2]) for job_id in job_ids) == 1000
    assert taken < 60
