"""What a person sees: tables, explanations and sites."""

import io
import json

import pytest
import yaml
from rich.console import Console
from runs.written import BEGAN, lived, prepared

from hpcdl.cli import render, screens
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.sites.site import Site
from hpcdl.telemetry import ExitFile, ExitRecord, StepRecord, append


@pytest.fixture
def auto(tiny):
    """The tiny experiment with the choice left to the planner."""
    tiny.write_text(tiny.read_text().replace("{data: 2}", "auto").replace("gpus: 2", "gpus: 4"))
    return tiny


def test_plan_shows_candidates_refusals_and_the_choice(hpcdl, auto):
    result = hpcdl("plan", auto, "--set", "training.global_batch=6", "--top", "2")
    assert result.code == 0
    assert "tokens/s" in result.out
    assert "slower ones not shown" in result.out
    assert "refused: global_batch" in result.out
    assert "would run" in result.out


def test_a_table_is_whole_on_a_narrow_terminal(monkeypatch):
    """With 80 columns z 512 was shown as 5 and an ellipsis, and so were 256, 512 and 1024 devices."""
    screen = io.StringIO()
    monkeypatch.setattr(
        render, "_out", Console(file=screen, width=30, force_terminal=True, color_system=None)
    )
    names = [f"column {place}" for place in range(9)]
    render.table(dict.fromkeys(names, "right"), [render.Row([str(1000 + place) for place in range(9)])])
    head, row = screen.getvalue().splitlines()
    assert head.split("  ") == names
    assert row.split() == [str(1000 + place) for place in range(9)]


def test_ids_of_runs_are_whole_on_a_narrow_terminal(monkeypatch):
    """With 80 columns an id was folded in its middle, and could not be copied."""
    screen = io.StringIO()
    monkeypatch.setattr(
        render, "_out", Console(file=screen, width=30, force_terminal=True, color_system=None)
    )
    row = {"state": "completed", "steps": 6, "step": 6, "last_loss": 3.8, "job_id": "4_2", "site": "here"}
    ids = ["quickstart-20261122-011304-0248-0", "own-engine-20261122-011236-361d"]
    trained = row | {"run": ids[0], "decomposition": "data 2", "command": None}
    own = row | {"run": ids[1], "decomposition": None, "command": ["python", "own.py"], "steps": None}
    screens.runs([trained, own | {"last_loss": None}], "runs")
    _, first, second = screen.getvalue().splitlines()
    assert first.split() == [ids[0], "completed", "6/6", "3.8000", "4_2", "here", "data", "2"]
    assert second.split() == [ids[1], "completed", "-", "-", "4_2", "here", "python", "own.py"]


def test_a_table_keeps_its_lines_whatever_a_cell_holds(monkeypatch):
    """A command may be a whole program, in letters of two columns; colours are those of the cells."""
    screen = io.StringIO()
    monkeypatch.setattr(
        render, "_out", Console(file=screen, width=30, force_terminal=True, color_system="standard")
    )
    rows = [render.Row(["学", "a\nb\x1b[2Jc"], styles={0: "red"}), render.Row(["[red]", "[/]"])]
    render.table({"left": "right", "what": "left"}, rows)
    assert screen.getvalue().splitlines() == [
        "\x1b[1m left  what\x1b[0m",
        "\x1b[31m   学\x1b[0m  a b [2Jc",
        "[red]  [/]",
    ]


def test_plan_json_has_the_documented_keys(hpcdl, auto):
    plan = json.loads(hpcdl("plan", auto, "--json").out)
    assert {"experiment", "site", "gpus", "evaluated", "feasible", "refused", "search_seconds"} < plan.keys()
    best = plan["candidates"][0]
    assert sum(best["breakdown"].values()) == pytest.approx(best["step_seconds"])
    assert sum(best["memory_breakdown"].values()) == pytest.approx(best["memory_gib"])
    degrees = [best["decomposition"][axis] for axis in ("data", "pipeline", "x", "y", "z")]
    assert degrees[0] * degrees[1] * degrees[2] * degrees[3] * degrees[4] == plan["gpus"] == 4


def test_plan_explain_takes_a_candidate_apart(hpcdl, auto):
    result = hpcdl("plan", auto, "--explain", "1")
    assert "rank 1:" in result.out
    assert "the best against the fastest that differs in" in result.out
    missing = hpcdl("plan", auto, "--explain", "999")
    assert missing.code == 2
    assert "999" in missing.err


def test_plan_past_a_queues_limits_says_that_submit_would_refuse(hpcdl, auto):
    result = hpcdl(
        "plan", auto, "--site", "perlmutter", "--nodes", "64", "--set", "training.global_batch=256"
    )
    assert result.code == 0
    assert "submit would refuse this" in result.err


def test_what_saves_no_memory_is_warned_of_before_anything_runs(hpcdl, tiny):
    low = ("--set", "training.pruning={sparsity: 0.1}")
    words = "training.pruning.sparsity 0.1 saves little or no memory: "
    for command in (("plan", tiny), ("plan", tiny, "--explain", "1"), ("submit", tiny, "--dry-run")):
        assert f"note: {words}" in hpcdl(*command, *low).err
        assert words not in hpcdl(*command).err
    as_json = hpcdl("plan", tiny, *low, "--json")
    assert json.loads(as_json.out)["warnings"][0].startswith(words)
    large = ("--set", "parallelism.offload=optimizer", "--set", "training.bucket_mib=100")
    assert "note: training.bucket_mib 100 is a bucket of 26214400 elements" in hpcdl("plan", tiny, *large).err


def test_plan_shows_what_is_offloaded(hpcdl, tiny):
    held = ("--set", "parallelism={data: 2, offload: parameters, recompute: full, offload_activations: true}")
    result = hpcdl("plan", tiny, *held)
    assert " parameters + activations " in result.out
    assert ", offload parameters + activations: " in hpcdl("plan", tiny, *held, "--explain", "1").out


def test_plan_shows_choices_that_are_seldom_made_where_one_is(hpcdl, tiny):
    held = ("--set", "parallelism={data: 2, zero: 1, recompute: full, recompute_every: 2}")
    assert " zero  every " in hpcdl("plan", tiny, *held).out
    assert "zero" not in hpcdl("plan", tiny).out


def test_plan_of_an_explicit_decomposition_that_cannot_run_shows_it_and_exits_3(hpcdl, tiny):
    result = hpcdl("plan", tiny, "--set", "parallelism.data=3")
    assert result.code == 3
    assert "1 refused: ranks" in result.out
    assert "data 3" in result.err


def test_dry_run_prints_the_script_and_writes_nothing(hpcdl, tiny, tmp_path):
    result = hpcdl("submit", tiny, "--dry-run")
    assert result.code == 0
    assert result.out.startswith("#!/bin/bash")
    assert "hpcdl.engine" in result.out
    assert not (tmp_path / "runs").exists()


def test_submit_dry_run_for_slurm_carries_what_was_asked(hpcdl, tiny):
    asked = ("--site", "perlmutter", "--set", "resources.account=m1", "--set", "training.precision=bf16")
    result = hpcdl("submit", tiny, "--dry-run", *asked)
    assert result.code == 0
    assert "#SBATCH --account=m1" in result.out
    assert "#SBATCH --time=0-00:05:00" in result.out


def test_list_of_nothing_says_how_to_start(hpcdl, tiny):
    assert "hpcdl submit" in hpcdl("list").out
    assert json.loads(hpcdl("list", "--json").out) == []


def test_site_list_shows_every_machine(hpcdl):
    table = hpcdl("site", "list").out
    rows = json.loads(hpcdl("site", "list", "--json").out)
    assert {"local", "perlmutter", "polaris"} <= {row["name"] for row in rows}
    assert all(row["name"] in table for row in rows)


def test_site_show_prints_a_site_file(hpcdl, tmp_path):
    """What is shown can be saved, changed and used."""
    shown = hpcdl("site", "show", "perlmutter")
    assert Site.model_validate(yaml.safe_load(shown.out)).name == "perlmutter"
    copy = tmp_path / "mine.yaml"
    copy.write_text(shown.out)
    assert json.loads(hpcdl("site", "show", copy, "--json").out)["name"] == "perlmutter"


def test_status_shows_the_newest_validation_loss(hpcdl, tiny, monkeypatch, tmp_path):
    """A run that a scheduler took and has ended, with two records of rank 0."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 77\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    assert hpcdl("submit", tiny, "--site", "generic-slurm").code == 0
    (run,) = (tmp_path / "runs").iterdir()
    folder = RunFolder(run)
    store.note(folder, "observed", 1, state="completed", exit_code=0)
    for step, validation_loss in ((1, 3.25), (2, None)):
        record = StepRecord(step, 3.0, 256, 0.1, 2560.0, validation_loss=validation_loss)
        append(folder.rank_metrics(0), record)
    assert "validation loss 3.2500" in hpcdl("status", "last").out
    assert json.loads(hpcdl("status", "last", "--json").out)["validation_loss"] == 3.25


def test_names_and_words_are_shown_letter_by_letter(hpcdl, tmp_path):
    """A folder ``run [old]`` was shown as ``run``, ``::a:`` as a picture, a last backslash as two."""
    (tmp_path / "a").mkdir()
    run = prepared(tmp_path / "a")
    lived(run, 1, 0, 5, "failed")
    said = "fe80:1::a:b:1 said [red]no[/] at C:\\"
    ExitFile(run.rank_exit(1, 0)).write(ExitRecord(0, "n[0]", BEGAN, 1, None, "OSError", said))
    old = run.path.rename(tmp_path / "run [old]")
    lines = hpcdl("status", old).out.splitlines()
    assert lines[0].startswith("run [old]  failed")
    assert f"first failure: rank 0 on n[0]: OSError: {said}" in lines
    assert lines[-1] == f"run folder: {old}"


def test_words_of_a_failed_program_move_no_cursor(hpcdl, tmp_path):
    """An exception whose words clear the screen, and have several lines, is still one line of a status."""
    run = prepared(tmp_path)
    lived(run, 1, 0, 30, "failed")
    said = ExitRecord(0, "n0\x1b[31m", BEGAN + 30, 1, exception="E", reason="boom \x1b[2J\nsecond line")
    ExitFile(run.rank_exit(1, 0)).write(said)
    run.rank_log(1, 0).write_text("E: boom \x1b[2J\n")
    shown = hpcdl("status", run.path)
    assert "boom" in shown.out
    assert "\x1b" not in shown.out
    assert not any(line.startswith("second line") for line in shown.out.splitlines())
