"""Sweeps as a user types them, on this machine: real runs, real files."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcdl.cli.plans import curves
from hpcdl.errors import NoAnswerError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import claims, metrics, store
from hpcdl.runs.sweeps.results import NUMBERS, Result
from hpcdl.telemetry import read_exits
from hpcdl.workflow.sweeps.staying import Stay

SWEEP = "{grid: {training.optimizer.lr: [1.0e-3, 1.0e-2], training.seed: [0, 1]}}"


@pytest.fixture
def sweep(tiny):
    """The small experiment with a sweep of four points, or another one."""

    def write(what=SWEEP):
        tiny.write_text(tiny.read_text().partition("\nsweep:")[0] + f"\nsweep: {what}\n")
        return tiny

    return write


@pytest.fixture
def prepared(hpcdl, sweep, monkeypatch):
    """The name of a sweep of four points that no scheduler has seen, and its run folders."""
    monkeypatch.setattr("hpcdl.workflow.sweeps.dispatching.hand_over", _submitted)
    told = json.loads(hpcdl("submit", sweep(), "--site", "generic-slurm", "--json").out)
    return told[0]["group"], [RunFolder(Path(run["path"])) for run in told]


def _submitted(folders, attempt, awaited, name):
    for index, folder in enumerate(folders):
        store.note(folder, "submitted", attempt, job_id=f"70_{index}")
    return [f"70_{index}" for index in range(len(folders))]


def settle(folders, *states):
    for folder, state in zip(folders, states, strict=True):
        store.note(folder, "observed", 1, state=state, reason="")


@pytest.mark.slow
def test_a_sweep_runs_on_this_machine_two_points_at_a_time_and_ends_in_one_table(hpcdl, sweep, tmp_path):
    done = hpcdl("submit", sweep(), "--at-once", "2", "--wait")
    assert done.code == 0, done.err
    assert "4 completed" in done.out
    (row,) = json.loads(hpcdl("list", "--json").out)
    name = row["run"]
    assert (row["state"], row["states"], row["points"]) == ("completed", {"completed": 4}, 4)
    assert "4 completed" in hpcdl("list").out
    shown = json.loads(hpcdl("status", "last", "--json").out)
    assert [point["step"] for point in shown["points"]] == [6] * 4
    assert [point["point"] for point in shown["points"]] == [
        {"training.optimizer.lr": lr, "training.seed": seed} for lr in (1e-3, 1e-2) for seed in (0, 1)
    ]
    found = json.loads(
        hpcdl("results", name, "--json", "--sort", "last_loss", "--csv", tmp_path / "r.csv", "--plot", tmp_path / "r.svg").out
    )["points"]  # fmt: skip
    losses = [point["last_loss"] for point in found]
    assert losses == sorted(losses)
    assert [point["best"] for point in found] == [True, False, False, False]
    assert found[0]["point"]["training.optimizer.lr"] == 1e-2
    assert all(point["node_hours"] > 0 for point in found)
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [float(each["last_loss"]) for each in rows] == losses
    assert [each["training.seed"] for each in rows] == [
        str(point["point"]["training.seed"]) for point in found
    ]
    assert "training.optimizer.lr" in (tmp_path / "r.svg").read_text()
    assert most_at_a_time([RunFolder(Path(point["path"])) for point in shown["points"]]) <= 2


@pytest.mark.parametrize("content", ['{"format": 1, "site": "he', "[]", '{"format": 2}'])
def test_a_sweep_whose_file_cannot_be_read_hides_no_run(hpcdl, prepared, content):
    """One torn file, or one of another program, and ``hpcdl list`` failed for all runs."""
    name, folders = prepared
    (folders[0].path.parent / ".groups" / f"{name}.json").write_text(content)
    settle(folders, *["completed"] * 4)
    listed = hpcdl("list", "--json")
    assert listed.code == 0
    assert [row["run"] for row in json.loads(listed.out)] == [folder.path.name for folder in folders]
    assert f"note: the runs of {name} are listed one by one" in listed.err


@pytest.mark.slow
def test_the_example_runs(hpcdl, tmp_path, monkeypatch):
    monkeypatch.setenv("HPCDL_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("HPCDL_SITE", raising=False)
    example = Path(__file__).parents[2] / "examples" / "sweep.yaml"
    done = hpcdl("submit", example, "--wait")
    assert done.code == 0, done.err
    points = json.loads(hpcdl("results", "last", "--json", "--sort", "validation_loss").out)["points"]
    assert [point["state"] for point in points] == ["completed"] * 6
    assert [point["best"] for point in points] == [True] + [False] * 5
    assert all(point["last_loss"] < point["first_loss"] for point in points)


def most_at_a_time(folders):
    """How many of the runs were between their first step and their end at the same time."""
    changes = []
    for folder in folders:
        end = max(record.time for record in read_exits(folder.exits(1)))
        changes += [(metrics.steps(folder)[0].time, 1), (end, -1)]
    return max(itertools.accumulate(change for _, change in sorted(changes)))


def test_a_dry_run_shows_the_points_and_one_script_and_writes_nothing(hpcdl, sweep, tmp_path):
    shown = hpcdl("submit", sweep(), "--site", "generic-slurm", "--dry-run")
    assert shown.code == 0, shown.err
    assert "point  training.optimizer.lr  training.seed" in shown.out
    assert "--- points 0-3, an array ---" in shown.out
    assert shown.out.count("#!/bin/bash") == 1
    assert "#SBATCH --array=0-3" in shown.out
    assert not (tmp_path / "runs").exists()
    told = json.loads(
        hpcdl("submit", tmp_path / "tiny.yaml", "--site", "generic-slurm", "--dry-run", "--json").out
    )
    assert [point["point"]["training.seed"] for point in told["points"]] == [0, 1, 0, 1]
    assert [(job["points"], job["array"]) for job in told["jobs"]] == [([0, 1, 2, 3], True)]


def test_scripts_that_differ_are_both_shown(hpcdl, sweep):
    path = sweep("{grid: {resources.walltime: ['00:05:00', '00:06:00']}}")
    shown = hpcdl("submit", path, "--site", "generic-slurm", "--dry-run").out
    assert "--- point 0, a job ---" in shown
    assert "--- point 1, a job ---" in shown
    shown = hpcdl("submit", sweep(), "--dry-run").out  # no arrays on this machine
    assert "--- points 0-3, a job each ---" in shown
    assert shown.count("#!/bin/bash") == 1


@pytest.mark.parametrize("verb", ["logs", "collect", "watch", "report", "launch-info", "advance", "export"])
@pytest.mark.parametrize("by", ["name", "last"])
def test_what_takes_one_run_does_not_take_a_point_of_a_sweep_for_it(hpcdl, prepared, tmp_path, verb, by):
    """`last` meant the sweep to some verbs and one of its points to others."""
    name, folders = prepared
    more = (tmp_path / "out",) if verb == "export" else ()
    done = hpcdl(verb, name if by == "name" else "last", *more)
    assert (done.code, f"{name} is a sweep of {len(folders)} runs" in done.err) == (2, True)


def test_no_run_waits_for_one_point_where_last_is_a_sweep(hpcdl, prepared, tiny):
    name, _ = prepared
    tiny.write_text(tiny.read_text().partition("sweep:")[0])
    done = hpcdl("submit", tiny, "--after", "last", "--dry-run")
    assert (done.code, f"of the sweep {name}" in " ".join(done.err.split())) == (2, True)


def test_why_points_came_to_nothing_is_said_once(hpcdl, prepared):
    """Six refused points once showed the word six times and the reason nowhere."""
    name, folders = prepared
    for folder in folders[1:]:
        store.note(folder, "refused", 1, reason="Invalid account")
    shown = hpcdl("status", name).out
    assert "points 1-3: Invalid account" in shown
    assert shown.count("Invalid account") == 1


def test_why_points_came_to_nothing_is_said_of_those_where_others_were_removed(hpcdl, prepared):
    """Points were counted from those whose folders were still there: point 1 stood for point 2."""
    name, folders = prepared
    store.note(folders[2], "refused", 1, reason="Invalid account")
    store.discard(folders[0])
    assert "point 2: Invalid account" in hpcdl("status", name).out


def test_a_sweep_is_one_row_unless_all_are_asked_for(hpcdl, prepared):
    name, folders = prepared
    settle(folders, "completed", "completed", "failed", "cancelled")
    assert [row["run"] for row in json.loads(hpcdl("list", "--json").out)] == [name]
    shown = hpcdl("list").out
    assert f"{name}  2 completed, 1 failed, 1 cancelled" in shown
    each = [folder.path.name for folder in folders]
    every = json.loads(hpcdl("list", "--all", "--json").out)
    assert [row["run"] for row in every] == each
    assert {row["group"] for row in every} == {name}
    assert [row["run"] for row in json.loads(hpcdl("list", name, "--json").out)] == each


def test_a_sweep_is_named_by_a_prefix_and_one_of_its_runs_by_its_own_id(hpcdl, prepared):
    name, folders = prepared
    settle(folders, *["completed"] * 4)
    assert json.loads(hpcdl("status", name[:-2], "--json").out)["group"] == name
    assert json.loads(hpcdl("status", "last", "--json").out)["group"] == name
    assert json.loads(hpcdl("status", f"{name}-2", "--json").out)["run"] == f"{name}-2"
    assert json.loads(hpcdl("status", folders[1].path, "--json").out)["run"] == f"{name}-1"


@pytest.mark.parametrize("verb", ["logs", "collect"])
def test_verbs_that_take_one_run_say_so(hpcdl, prepared, verb):
    name, _ = prepared
    done = hpcdl(verb, name)
    assert done.code == 2
    assert f"{name} is a sweep of 4 runs, and this takes one" in done.err
    assert f"{name}-0" in done.err


def test_only_those_that_failed_are_submitted_again(hpcdl, prepared):
    name, folders = prepared
    settle(folders, "completed", "failed", "timeout", "cancelled")
    done = hpcdl("resume", name, "--failed")
    assert done.code == 0, done.err
    assert "2 points as job 70 (2)" in done.out
    assert [store.current(folder).number for folder in folders] == [1, 2, 2, 1]
    for folder in folders[1:3]:
        store.note(folder, "observed", 2, state="completed", reason="")
    assert hpcdl("resume", name, "--cancelled").code == 0
    assert [store.current(folder).number for folder in folders] == [1, 2, 2, 2]


def test_resuming_what_nobody_needs_to_says_how_the_points_stand(hpcdl, prepared):
    name, folders = prepared
    settle(folders, *["completed"] * 4)
    done = hpcdl("resume", name, "--failed")
    assert done.code == 2
    assert f"no point of {name} is" in done.err
    assert "4 completed" in done.err


def test_points_without_room_are_told_with_the_command_that_submits_them(hpcdl, prepared, monkeypatch):
    """It named one that submitted nothing: it was for points that had never been in the queue."""
    name, folders = prepared
    settle(folders, *["failed"] * 4)
    monkeypatch.setattr("hpcdl.workflow.sweeps.dispatching.fitting", lambda members, *_: members[:1])
    done = hpcdl("resume", name, "--failed")
    assert f"3 points wait for room, until hpcdl resume {name} --failed" in done.out


def test_points_that_somebody_else_submits_are_not_said_to_be_submitted(hpcdl, prepared):
    name, folders = prepared
    settle(folders, *["paused"] * 4)
    for folder in folders:
        claims.claim(folder, 2, "somebody on another host")
    done = hpcdl("resume", name)
    assert done.code == 0
    assert f"nothing was submitted of {name}" in done.out
    assert "4 points are being submitted by somebody else" in done.out


def test_cancelling_says_how_many_points_will_not_go_on(hpcdl, prepared):
    name, folders = prepared
    settle(folders, "completed", "timeout", "failed", "failed")
    assert "1 point is between two jobs, and will not go on" in hpcdl("cancel", name).out
    assert f"no point of {name} is in the queue" in hpcdl("cancel", name).out


def test_points_that_were_never_submitted_are_told_when_a_sweep_is_cancelled(hpcdl, sweep, monkeypatch):
    monkeypatch.setattr("hpcdl.workflow.sweeps.dispatching.fitting", lambda members, *_: [])
    told = json.loads(hpcdl("submit", sweep(), "--site", "generic-slurm", "--json").out)
    name = told[0]["group"]
    assert f"4 points are not submitted, until hpcdl resume {name}" in hpcdl("cancel", name).out


def test_waiting_outlives_a_scheduler_that_is_away(hpcdl, prepared, monkeypatch, tmp_path):
    """The first question without an answer ended it; it is said once, and asked less and less often."""
    name, folders = prepared
    settle(folders, *["paused"] * 4)  # so that ``resume`` itself has nothing to ask
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/bash\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:/usr/bin:/bin")
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        for folder in folders if len(pauses) == 3 else ():
            store.note(folder, "observed", 2, state="completed", reason="")

    monkeypatch.setattr("hpcdl.cli.sweeps.submitting.time", SimpleNamespace(sleep=sleep))
    done = hpcdl("resume", name, "--wait")
    assert done.code == 0, done.err
    assert done.err.count("Unable to contact") == 1
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-1]
    assert "4 completed" in done.out


def test_waiting_outlives_a_submission_whose_answer_is_lost(hpcdl, prepared, monkeypatch):
    """It ended there, although the next look knows the job again or submits the point once more."""
    name, folders = prepared
    settle(folders[:3], *["completed"] * 3)
    store.note(folders[3], "observed", 1, state="timeout", reason="")
    answers = [NoAnswerError("Slurm gave no answer"), NoAnswerError("Slurm gave no answer"), None]

    def go_on(stay, seen):
        if error := answers.pop(0):
            raise error
        store.note(folders[3], "observed", 1, state="completed", reason="")
        return 4

    monkeypatch.setattr(Stay, "go_on", go_on)
    monkeypatch.setattr("hpcdl.cli.sweeps.submitting.time", SimpleNamespace(sleep=lambda seconds: None))
    done = hpcdl("resume", name, "--wait")
    assert (done.code, done.err.count("Slurm gave no answer")) == (0, 1)
    assert "4 completed" in done.out


@pytest.fixture
def one_at_a_time(hpcdl, sweep, monkeypatch):
    """The name of a sweep of which one point is in the queue and three are not, and its run folders."""
    monkeypatch.setattr("hpcdl.workflow.sweeps.dispatching.hand_over", _submitted)
    monkeypatch.setattr("hpcdl.workflow.sweeps.dispatching.fitting", lambda members, *_: members[:1])
    told = json.loads(hpcdl("submit", sweep(), "--site", "generic-slurm", "--json").out)
    return told[0]["group"], [RunFolder(Path(run["path"])) for run in told]


def test_waiting_for_points_that_failed_submits_no_others(hpcdl, one_at_a_time, monkeypatch):
    """--failed --wait submitted, after a cancel, all that had never been submitted."""
    name, folders = one_at_a_time
    settle(folders[:1], "failed")
    assert "3 points are not submitted" in hpcdl("cancel", name).out

    def submitted(group, attempt, awaited, job):
        _submitted(group, attempt, awaited, job)
        for folder in group:
            store.note(folder, "observed", attempt, state="completed", reason="")
        return ["70"]

    monkeypatch.setattr("hpcdl.workflow.sweeps.dispatching.hand_over", submitted)
    done = hpcdl("resume", name, "--failed", "--wait")
    assert [store.current(folder).state.value for folder in folders] == ["completed"] + ["prepared"] * 3
    assert (done.code, "1 completed, 3 prepared" in done.err) == (5, True)
    assert f"hpcdl status {name}; hpcdl resume {name}\n" in done.err


@pytest.mark.parametrize("over", ["environment.WHERE", "environment.ELSE"])
def test_values_with_dollars_are_drawn_as_they_are(tmp_path, over):
    """matplotlib took what stands between two of them for mathematics, and ended with an error."""
    words = ["$HOME/$USER", "$x^{$", "one$"]
    values = [{"environment.WHERE": word, "environment.ELSE": word[::-1]} for word in words]
    numbers = dict.fromkeys(NUMBERS, 2.5)
    found = [Result(f"r-{index}", each, "completed", numbers) for index, each in enumerate(values)]
    curves.results(tmp_path / "r.svg", "from $A to $B", found, over)
    drawn = (tmp_path / "r.svg").read_text()
    assert all(f"<!-- {word} -->" in drawn for word in ("from $A to $B", *(each[over] for each in values)))


def test_a_group_of_another_format_is_refused(hpcdl, prepared, tmp_path):
    name, _ = prepared
    path = tmp_path / "runs" / ".groups" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    assert "can read: its format is 2, not 1" in hpcdl("list").err


def test_results_without_a_loss_are_dashes_and_no_best(hpcdl, prepared):
    name, _ = prepared
    shown = hpcdl("results", name)
    assert shown.code == 0
    assert "best" not in shown.out
    assert "no point of" in hpcdl("results", name, "--plot", "x.svg").err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("submit", "EXP", "--repeat", "3"), "--repeat 3: "),
        (("submit", "EXP", "--follow"), "--follow shows one run, not a sweep"),
        (("submit", "EXP", "--set", "training.seed=4"), "sweeps training.seed; leave out one of them"),
        (("submit", "EXP", "--set", "sweep.grid=3"), "--set sweep.grid=3: sweep.grid is 3"),
        (("submit", "EXP", "--set", "sweep=3"), "sweep is 3, but must be a mapping"),
        (("submit", "EXP", "--site", "generic-slurm", "--dry-run", "--explain"), "names many experiments"),
        (("plan", "EXP"), "names many experiments, and here is room for one"),
        (("results", "nothing"), "there are no sweeps in"),
        (("results", "nothing", "--over", "training.seed"), "name its file with --plot FILE"),
        (("list", "nothing"), "there are no sweeps in"),
    ],
)
def test_what_does_not_go_together_is_refused(hpcdl, sweep, arguments, words):
    path = sweep()
    done = hpcdl(*(path if each == "EXP" else each for each in arguments))
    assert done.code == 2
    assert words in done.err


def test_flags_of_sweeps_are_refused_for_a_run(hpcdl, tiny):
    for how in ((), ("--dry-run",)):
        done = hpcdl("submit", tiny, "--skip-infeasible", *how)
        assert (done.code, "leaves out points of a sweep" in done.err) == (2, True)
    folder = store.create(tiny.parent / "runs", "alone")
    folder.resolved.write_text("{}")
    done = hpcdl("resume", folder.path.name, "--failed")
    assert done.code == 2
    assert f"--failed is for sweeps, and {folder.path.name} is none" in done.err


def test_an_unknown_column_is_told_with_those_there_are(hpcdl, prepared):
    name, _ = prepared
    assert "--sort losss: there is no such column" in hpcdl("results", name, "--sort", "losss").err
    assert "one of training.optimizer.lr, training.seed, step" in hpcdl("results", name, "--sort", "x").err


def test_infeasible_points_stop_all_unless_they_are_skipped(hpcdl, sweep, tmp_path):
    path = sweep("{grid: {parallelism.data: [2, 3, 5]}}")
    refused = hpcdl("submit", path, "--site", "generic-slurm", "--dry-run")
    assert refused.code == 3
    assert "3 ranks" in refused.err
    assert "5 ranks" in refused.err
    assert "--skip-infeasible submits the other 1" in refused.err
    done = hpcdl("submit", path, "--site", "generic-slurm", "--dry-run", "--skip-infeasible", "--json")
    assert done.code == 0
    assert "left out: parallelism" in done.err
    assert len(json.loads(done.out)["points"]) == 1


def test_set_can_take_the_sweep_away(hpcdl, sweep):
    assert hpcdl("plan", sweep(), "--set", "sweep=null").code == 0


def test_a_damaged_group_file_is_named(hpcdl, prepared, tmp_path):
    name, _ = prepared
    (tmp_path / "runs" / ".groups" / f"{name}.json").write_text("{")
    done = hpcdl("status", name)
    assert done.code == 2
    assert f"{name}.json is not a group this version of hpcdl can read" in done.err


def test_the_schema_knows_sweeps(hpcdl):
    text = hpcdl("schema", "experiment").out
    assert {"Sweep", "Random", "Draw"} <= json.loads(text)["$defs"].keys()
