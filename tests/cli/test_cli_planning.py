"""The views of ``hpcdl plan``: several numbers of devices, two plans side by side, other engines."""

import json
import re
import subprocess
import sys

import pytest
from quick import first_of

MACHINE = ("--site", "perlmutter", "--set", "training.precision=bf16")


@pytest.fixture
def auto(tiny):
    """The tiny experiment with the choice left to the planner."""
    tiny.write_text(tiny.read_text().replace("{data: 2}", "auto").replace("gpus: 2", "gpus: 4"))
    return tiny


def test_several_numbers_of_devices_are_a_table(hpcdl, auto):
    result = hpcdl("plan", auto, *MACHINE, "--gpus", "2,4,31", "--tokens", "1B")
    assert result.code == 0
    assert "strong scaling" in result.out
    assert all(word in result.out for word in ("efficiency", "tokens/day", "to 1B", "node-hours"))
    rows = [line.split() for line in result.out.splitlines()]
    assert [row[0] for row in rows if len(row) > 1 and row[0].isdigit()] == ["2", "4", "31", "31"]
    assert "31 devices cannot run: none of" in result.out


def test_without_a_budget_of_tokens_prices_are_of_a_billion_and_of_a_step(hpcdl, auto):
    result = hpcdl("plan", auto, *MACHINE, "--gpus", "2,4")
    assert "node-h/Gtoken" in result.out
    assert "node-h/step" in result.out
    assert "to 1B" not in result.out


def test_several_numbers_as_json(hpcdl, auto):
    document = json.loads(hpcdl("plan", auto, *MACHINE, "--gpus", "2-8", "--weak", "--json").out)
    assert list(document) == ["experiment", "site", "engine", "what_if", "scaling", "tokens", "points"]
    assert document["scaling"] == "weak"
    assert [point["gpus"] for point in document["points"]] == [2, 4, 8]
    assert set(document["points"][0]) == {
        "gpus", "runs", "interrupted", "reason", "nodes", "step_seconds", "tokens_per_day", "efficiency", "node_hours_per_step",
        "node_hours_per_billion_tokens", "hours_to_tokens", "node_hours_to_tokens", "front", "best",
    }  # fmt: skip


def test_what_submit_would_refuse_of_several_is_said_once(hpcdl, auto):
    paid = ("--set", "resources.account=m1")
    result = hpcdl("plan", auto, *MACHINE, *paid, "--gpus", "4,64,128", "--set", "training.global_batch=128")
    (note,) = [line for line in result.err.splitlines() if line.startswith("note: ")]
    assert note.startswith(
        "note: submit would refuse 64, 128 devices: queue debug takes jobs of at most 8 nodes"
    )


def test_a_token_budget_needs_but_one_number(hpcdl, auto):
    result = hpcdl("plan", auto, *MACHINE, "--tokens", "1T")
    assert result.code == 0
    assert "to 1T" in result.out


def test_several_numbers_on_a_changed_machine_say_so(hpcdl, auto):
    asked = ("plan", auto, *MACHINE, "--gpus", "2,4", "--what-if", "device.flops=2x")
    assert "all of this if device.flops=2x" in hpcdl(*asked).out
    faster = json.loads(hpcdl(*asked, "--json").out)
    now = json.loads(hpcdl("plan", auto, *MACHINE, "--gpus", "2,4", "--json").out)
    assert (faster["what_if"], now["what_if"]) == (["device.flops=2x"], [])
    assert faster["points"][0]["step_seconds"] <= now["points"][0]["step_seconds"]


def test_more_devices_than_the_machine_has_are_rows_with_their_reason(hpcdl, auto, tmp_path):
    alone = tmp_path / "alone.yaml"
    shown = hpcdl("site", "show", "perlmutter").out
    alone.write_text(shown.replace("nic_bandwidth: 25", "nic_bandwidth: 0"))
    result = hpcdl("plan", auto, "--site", alone, *MACHINE[2:], "--gpus", "8,16")
    assert result.code == 3
    assert "8 devices cannot run: site perlmutter states no network" in result.out
    both = hpcdl("plan", auto, "--site", alone, *MACHINE[2:], "--gpus", "8", "--what-if", "link.inter=100")
    assert both.code == 0
    assert "now cannot run: site perlmutter states no network" in both.out


def test_no_number_that_can_run_exits_3_after_showing_why(hpcdl, auto):
    result = hpcdl("plan", auto, *MACHINE, "--gpus", "31,37")
    assert result.code == 3
    assert "31 devices cannot run" in result.out
    assert "37 devices cannot run" in result.out
    assert "on none of these numbers of devices" in result.err


def test_a_changed_machine_is_set_beside_the_real_one(hpcdl, auto):
    result = hpcdl("plan", auto, *MACHINE, "--what-if", "device.flops=2x", "--what-if", "link.inter=2x")
    assert result.code == 0
    assert "device.flops=2x, link.inter=2x" in result.out
    assert "times the tokens a second" in result.out
    document = json.loads(hpcdl("plan", auto, *MACHINE, "--what-if", "device.flops=2x", "--json").out)
    assert list(document) == ["names", "plans", "speedup", "breakdown", "memory_breakdown"]
    assert document["names"] == ["now", "device.flops=2x"]
    assert document["speedup"] >= 1


def test_only_terms_that_print_alike_are_called_equal(hpcdl, auto, tmp_path):
    """576.0 and 480.8 MiB stood beside a sign of equality, for they were little of the whole."""
    other = tmp_path / "deeper.yaml"
    auto.write_text(auto.read_text().replace("layers: 2", "layers: 4"))
    other.write_text(auto.read_text().replace("layers: 4", "layers: 5"))
    result = hpcdl("plan", auto, *MACHINE, "--set", "model.hidden=512", "--compare", other)
    below = result.out[result.out.index("seconds of a step") :].splitlines()
    cells = [re.split(r"\s{2,}", line.strip()) for line in below]
    rows = {row[0]: row[1:] for row in cells if len(row) == 4 and row[-1] != "difference"}
    assert rows["gradients"][0] != rows["gradients"][1]
    assert all((before == after) == (difference == "=") for before, after, difference in rows.values())


def test_another_experiment_is_set_beside_this_one(hpcdl, auto, tmp_path):
    other = tmp_path / "wider.yaml"
    other.write_text(auto.read_text().replace("hidden: 32", "hidden: 64"))
    result = hpcdl("plan", auto, *MACHINE, "--compare", other)
    assert result.code == 0
    assert "wider: " in result.out
    document = json.loads(hpcdl("plan", auto, *MACHINE, "--compare", other, "--json").out)
    assert document["names"] == ["tiny", "wider"]
    assert [plan["runs"] for plan in document["plans"]] == [True, True]


def test_files_of_one_name_are_told_apart_by_their_folders(hpcdl, auto, tmp_path):
    other = tmp_path / "other" / "tiny.yaml"
    other.parent.mkdir()
    other.write_text(auto.read_text())
    document = json.loads(hpcdl("plan", auto, *MACHINE, "--compare", other, "--json").out)
    assert document["names"] == [str(auto), str(other)]


def test_a_side_that_cannot_run_is_told_and_both_exit_3(hpcdl, auto, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(auto.read_text().replace("parallelism: auto", "parallelism: {data: 3}"))
    one = hpcdl("plan", auto, *MACHINE, "--compare", wrong)
    assert one.code == 0
    assert "wrong cannot run: parallelism: data 3" in one.out
    copy = tmp_path / "copy.yaml"
    copy.write_text(wrong.read_text())
    both = hpcdl("plan", wrong, *MACHINE, "--compare", copy)
    assert both.code == 3
    assert "neither wrong nor copy can run" in both.err


def test_a_measured_profile_replaces_the_shipped_numbers(hpcdl, auto, tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text("step_overhead_s: 1.5\nsource: measured here\ndate: 2026-11\n")
    asked = ("plan", auto, *MACHINE, "--json")
    shipped, measured = (json.loads(hpcdl(*asked, *more).out) for more in ((), ("--profile", path)))
    before, after = (document["candidates"][0] for document in (shipped, measured))
    assert after["breakdown"]["step overhead"] == 1.5
    assert after["breakdown"]["forward"] == before["breakdown"]["forward"]
    assert "efficiencies: measured here (2026-11)" in after["notes"]
    result = hpcdl("plan", auto, *MACHINE, "--profile", path, "--assumptions")
    assert "measured here (2026-11)" in result.out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gemm_eficiency: 0.5\nsource: s\ndate: 2026-11", "did you mean 'gemm_efficiency'?"),
        ("gemm_efficiency: 1.5\nsource: s\ndate: 2026-11", "profile.yaml:1:18: gemm_efficiency is 1.5"),
        ("gemm_efficiency: 0.5", "source is missing"),
        ("- 1", "profile.yaml"),
    ],
)
def test_a_profile_that_is_none_is_told_with_its_place(hpcdl, auto, tmp_path, text, words):
    (tmp_path / "profile.yaml").write_text(text)
    result = hpcdl("plan", auto, *MACHINE, "--profile", tmp_path / "profile.yaml")
    assert result.code == 2
    assert words in result.err


def test_assumptions_are_printed_on_demand(hpcdl, auto):
    result = hpcdl("plan", auto, *MACHINE, "--assumptions")
    assert result.code == 0
    assert all(
        word in result.out for word in ("gemm_efficiency", "sequence", "margin", "attention", "in flight")
    )
    document = json.loads(hpcdl("plan", auto, *MACHINE, "--assumptions", "--json").out)
    assert list(document["assumptions"][0]) == ["group", "name", "value", "meaning", "source"]
    assert "assumptions" not in json.loads(hpcdl("plan", auto, *MACHINE, "--json").out)


def test_disturbed_steps_are_a_distribution(hpcdl, auto):
    asked = ("plan", auto, *MACHINE, "--simulate", "jitter=0.1,steps=50,seed=3")
    result = hpcdl(*asked)
    assert result.code == 0
    assert "50 steps simulated" in result.out
    found = json.loads(hpcdl(*asked, "--json").out)["simulation"]
    assert (found["steps"], found["seed"], found["jitter"]) == (50, 3, 0.1)
    assert found["undisturbed"] < found["p50"] <= found["p95"] <= found["p99"]


def test_without_disturbance_every_step_is_the_estimate(hpcdl, auto):
    document = json.loads(hpcdl("plan", auto, *MACHINE, "--simulate", "steps=5", "--json").out)
    found = document["simulation"]
    assert found["p5"] == found["p99"] == pytest.approx(found["undisturbed"])
    assert found["undisturbed"] == pytest.approx(document["candidates"][0]["step_seconds"], rel=0.1)


VIEWS = {
    "one": (),
    "several": ("--gpus", "2,4,31,8", "--tokens", "1B"),
    "two": ("--what-if", "device.memory=2x"),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("suffix", first_of("svg", "png"))
def test_what_is_shown_can_be_drawn(hpcdl, auto, tmp_path, view, suffix):
    path = tmp_path / f"plan.{suffix}"
    assert hpcdl("plan", auto, *MACHINE, *VIEWS[view], "--plot", path).code == 0
    begins = path.read_bytes()
    assert begins.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    hpcdl("plan", auto, *MACHINE, *VIEWS[view], "--plot", path)
    assert path.read_bytes() == begins  # the same plan, the same file
    assert not list(tmp_path.glob(".plan*"))


def test_a_figure_names_its_terms_and_its_pipeline(hpcdl, auto, tmp_path):
    """Text of an SVG is drawn as outlines, each group with its words in a comment."""
    path = tmp_path / "plan.svg"
    hpcdl(
        "plan",
        auto,
        *MACHINE,
        "--set",
        "parallelism={data: 2, pipeline: 2, defer_weights: true}",
        "--plot",
        path,
    )
    drawn = path.read_text()
    for words in ("forward", "backward", "weight", "framework", "seconds of a step", "stage"):
        assert f"<!-- {words} -->" in drawn
    assert "<!-- 40 GiB  -->" in drawn


def test_a_figure_holds_as_many_candidates_as_are_shown(hpcdl, auto, tmp_path):
    """Two were asked for and ten drawn."""
    path = tmp_path / "plan.svg"
    hpcdl("plan", auto, *MACHINE, "--top", "2", "--plot", path)
    drawn = path.read_text()
    assert "<!-- 2: " in drawn
    assert "<!-- 3: " not in drawn


def test_without_stages_no_pipeline_is_drawn(hpcdl, auto, tmp_path):
    path = tmp_path / "plan.svg"
    hpcdl("plan", auto, *MACHINE, "--set", "parallelism={data: 4}", "--plot", path)
    assert "<!-- stage -->" not in path.read_text()


def test_labels_of_near_numbers_do_not_cover_each_other(hpcdl, auto, tmp_path):
    """2688, 3200 and 3712 devices were one black spot; the days were powers of ten that no point has."""
    path = tmp_path / "plan.svg"
    asked = ("--gpus", "2,30,32", "--set", "training.global_batch=480", "--tokens", "1T", "--plot", path)
    assert hpcdl("plan", auto, *MACHINE, *asked).code == 0
    below_curve, below_front = path.read_text().split("<!-- devices -->")
    assert "<!-- 30 -->" in below_curve
    assert "<!-- 32 -->" not in below_curve
    assert "10^" not in below_front.replace("$", "")


def test_a_plan_that_cannot_run_is_drawn_without_its_pipeline(hpcdl, auto, tmp_path):
    path = tmp_path / "plan.svg"
    assert hpcdl("plan", auto, *MACHINE, "--set", "parallelism={pipeline: 4}", "--plot", path).code == 3
    assert "<!-- stage -->" not in path.read_text()
    assert "<!-- seconds of a step -->" in path.read_text()


def test_without_matplotlib_the_extra_is_named(hpcdl, auto, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "hpcdl.cli.plans.plots", raising=False)
    monkeypatch.delattr("hpcdl.cli.plans.plots", raising=False)
    result = hpcdl("plan", auto, *MACHINE, "--plot", tmp_path / "plan.svg")
    assert result.code == 2
    assert "--plot needs matplotlib, which is an extra" in result.err
    assert "pip install 'hpcdl[plot]'" in result.err
    assert result.out == ""


def test_a_plan_without_a_figure_loads_no_matplotlib():
    code = "import sys, hpcdl.cli.plans.planning; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "matplotlib" not in done.stdout.split()


def test_an_explanation_as_json(hpcdl, auto):
    document = json.loads(hpcdl("plan", auto, *MACHINE, "--explain", "2", "--json").out)
    assert list(document["explanation"]) == [
        "rank", "stages", "rivals", "overlap_off", "refused", "nearest_misfit", "remedies",
    ]  # fmt: skip
    assert document["explanation"]["rank"] == 2
    assert hpcdl("plan", auto, *MACHINE, "--explain", "999", "--json").code == 2


def test_another_engine_runs_what_ours_cannot(hpcdl, tiny):
    asked = ("plan", tiny, *MACHINE, "--set", "parallelism={data: 2, zero: 3}")
    assert hpcdl(*asked).code == 3
    other = hpcdl(*asked, "--engine", "any")
    assert other.code == 0
    assert "engine any" in other.out
    assert json.loads(hpcdl(*asked, "--engine", "fsdp", "--json").out)["engine"] == "fsdp"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--gpus", "0"), "--gpus 0: '0' does not grow, or begins with no device"),
        (("--gpus", "many"), "'many' is not a number of devices"),
        (("--gpus", "8-2"), "'8-2' ends before it begins"),
        (("--gpus", "2,4", "--nodes", "1"), "--nodes 1 goes with one number of devices"),
        (("--gpus", "2,4", "--explain", "1"), "--explain looks at one plan"),
        (("--what-if", "link.inter=2x", "--assumptions"), "--assumptions looks at one plan"),
        (("--gpus", "2,4", "--compare", "x.yaml"), "--compare sets two plans side by side"),
        (("--tokens", "1B", "--compare", "x.yaml"), "--compare sets two plans side by side"),
        (("--tokens", ""), "--tokens: '' is not a count above zero"),
        (("--weak",), "--weak lets the batch grow with the devices"),
        (("--gpus", "3,4", "--weak"), "which is not whole"),
        (("--tokens", "lots"), "--tokens: 'lots' is not a count above zero"),
        (("--tokens", "0"), "--tokens: '0' is not a count above zero"),
        (("--tokens", "-5B"), "--tokens: '-5B' is not a count above zero"),
        (("--what-if", "link.intr=2x"), "did you mean 'link.intra'?"),
        (("--what-if", "link.inter=2x", "--compare", "x.yaml"), "use one of them"),
        (("--compare", "none.yaml"), "none.yaml: there is no such file"),
        (("--profile", "none.yaml"), "none.yaml: there is no such file"),
        (("--engine", "deepsped"), "there is no engine 'deepsped' to plan for"),
        (("--explain", "999"), "rank 999 is not in this plan"),
        (("--simulate", ""), "there is no key ''"),
        (("--simulate", "jiter=0.1"), "did you mean 'jitter'?"),
        (("--simulate", "jitter=lots"), "jitter 'lots' is not a number"),
        (("--simulate", "slow=0.1"), "'slow=0.1' is not slow=slow_share:slow_factor"),
        (("--simulate", "jitter=0.1,steps=1.5"), "steps '1.5' is not a number"),
        (("--simulate", "steps=0"), "at least one step"),
        (("--simulate", "jitter=0.1", "--gpus", "2,4"), "--simulate looks at one plan"),
        (("--plot", "plan.pdf"), "--plot plan.pdf is neither .svg nor .png"),
        (("--plot", "nowhere/plan.svg"), "there is no folder nowhere"),
    ],
)
def test_flags_that_make_no_sense_are_refused(hpcdl, auto, flags, words):
    result = hpcdl("plan", auto, *MACHINE, *flags)
    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err


def test_help_shows_examples(hpcdl):
    result = hpcdl("plan", "--help")
    assert "hpcdl plan exp.yaml --site perlmutter --gpus 64-1024 --tokens 300B\n" in result.out


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("hpcdl plan e.yaml --engine fs", "fsdp"),
        ("hpcdl plan e.yaml --what-if link.in", "link.intra="),
        ("hpcdl plan e.yaml --site perl", "perlmutter"),
    ],
)
def test_a_shell_completes_names(hpcdl, monkeypatch, typed, wanted):
    monkeypatch.setenv("_HPCDL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert wanted in hpcdl().out.split()


@pytest.mark.parametrize("flags", [(), ("--what-if", "link.inter=2x")])
def test_stopped_before_there_is_a_plan_it_says_so(hpcdl, auto, monkeypatch, flags):
    """Ctrl-C before anything that fits was found used to end without a word."""

    def stop(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("hpcdl.planner.search.least_step", stop)
    result = hpcdl("plan", auto, *MACHINE, *flags)
    assert result.code == 130
    assert "stopped before there was a plan to show" in result.err
