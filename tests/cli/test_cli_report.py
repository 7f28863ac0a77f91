"""``hpcdl report`` in a real browser without a network, and ``hpcdl compare``."""

from __future__ import annotations

import json
import math
import re
import shutil
import tarfile
from pathlib import Path

import pytest
from runs.written import chained, lived, prepared, trained

from hpcdl.runs.sweeps.groups import Group, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Nothing that a browser does by itself may be taken for something that the page asks for.
SWITCHES = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER TESTED: there is no chromium here")


class Tab:
    """A page that is open, with all that it said and asked for."""

    def __init__(self, page):
        self.page, self.said, self.asked = page, [], []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self, file: Path) -> None:
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("main h1")

    def curve(self, name: str, chart: int = 0):
        return self.page.locator(".chart").nth(chart).locator(f'path.curve[data-name="{name}"]')


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only where there is a browser

    with sync_playwright() as started:
        found = started.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=SWITCHES, timeout=120_000
        )
        yield found
        found.close()


@pytest.fixture
def tab(browser):
    context = browser.new_context(offline=True, viewport={"width": 1240, "height": 900})
    context.set_default_timeout(60_000)
    yield Tab(context.new_page())
    context.close()


def drawn_points(curve) -> int:
    """Corners of a curve, counted in what the browser draws."""
    return len(re.findall("[ML]", curve.get_attribute("d")))


@needs_browser
def test_a_report_opens_without_a_network_and_shows_every_step(hpcdl, tmp_path, tab):
    run, file = chained(tmp_path), tmp_path / "report.html"
    assert hpcdl("report", run.path, "--output", file).code == 0
    tab.open(file)
    assert tab.asked == [file.as_uri()]
    assert tab.said == []
    assert tab.page.locator("h1").inner_text().startswith(run.path.name)
    assert drawn_points(tab.curve("training")) == 40
    text = tab.page.locator("main").inner_text()
    for words in ("completed", "planned", "rank 1 · n1", "attempt 2", "steps 16–40", "Plan against measured"):
        assert words in text, words
    shown = tmp_path / "report.png"
    tab.page.screenshot(path=shown, full_page=True)
    assert shown.stat().st_size > 20_000


@needs_browser
def test_a_curve_is_read_by_mouse_and_keys_and_can_be_zoomed(hpcdl, tmp_path, tab):
    file = tmp_path / "report.html"
    hpcdl("report", chained(tmp_path).path, "--output", file)
    tab.open(file)
    area = tab.page.locator(".chart svg").first.bounding_box()
    middle = area["y"] + area["height"] / 2
    tab.page.mouse.move(area["x"] + area["width"] - 13 * area["width"] / 1180, middle)
    tip = tab.page.locator(".tip").first
    assert tip.is_visible()
    assert tip.inner_text().split() == ["step", "40", "1"]
    tab.page.locator(".chart svg").first.focus()
    tab.page.keyboard.press("ArrowLeft")
    assert tip.inner_text().split() == ["step", "39", "1.1"]
    tab.page.mouse.move(area["x"] + area["width"] * 0.5, middle)
    tab.page.mouse.down()
    tab.page.mouse.move(area["x"] + area["width"] * 0.7, middle, steps=4)
    tab.page.mouse.up()
    assert 5 < drawn_points(tab.curve("training")) < 15
    whole = tab.page.get_by_role("button", name="whole curve").first
    whole.click()
    assert drawn_points(tab.curve("training")) == 40
    scale = tab.page.get_by_role("button", name="log scale").first
    before = tab.curve("training").get_attribute("d")
    scale.click()
    assert scale.get_attribute("aria-pressed") == "true"
    assert tab.curve("training").get_attribute("d") != before
    assert tab.said == []


@needs_browser
def test_a_report_is_dark_where_one_wants_it_dark(hpcdl, tmp_path, tab):
    file = tmp_path / "report.html"
    hpcdl("report", chained(tmp_path).path, "--output", file)
    tab.open(file)

    def light(what: str) -> float:
        colour = tab.page.evaluate(f"getComputedStyle(document.body).{what}")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    assert light("backgroundColor") > 200
    assert light("color") < 60
    tab.page.emulate_media(color_scheme="dark")
    assert light("backgroundColor") < 60
    assert light("color") > 200
    tab.page.emulate_media(media="print")
    assert light("backgroundColor") > 200
    assert not tab.page.locator("button").first.is_visible()


@needs_browser
def test_hostile_words_and_losses_that_are_no_numbers_are_shown_as_they_are(hpcdl, tmp_path, tab):
    name = "</script><script>document.title='taken'</script><b>bold</b>\u2028"
    run, file = prepared(tmp_path, f"name={json.dumps(name)}"), tmp_path / "report.html"
    lived(run, 1, 0, 30, "failed")
    trained(run, [5.0, 4.0, math.nan, 3.0, math.inf])
    run.rank_log(1, 0).write_text("<img src=x onerror=alert(1)>\n")
    hpcdl("report", run.path, "--output", file)
    tab.open(file)
    assert tab.asked == [file.as_uri()]
    assert tab.said == []
    assert tab.page.title() != "taken"
    assert "<b>bold</b>" in tab.page.locator("main").inner_text()
    assert tab.page.locator("main b", has_text="bold").count() == 0
    assert drawn_points(tab.curve("training")) == 3
    assert tab.page.locator(".chart").first.locator("path.odd").count() == 2
    assert "inf" in tab.page.locator(".tile").first.inner_text()


@needs_browser
def test_a_report_of_a_run_without_a_step_says_so(hpcdl, tmp_path, tab):
    file = tmp_path / "report.html"
    hpcdl("report", prepared(tmp_path).path, "--output", file)
    tab.open(file)
    assert "No step has been recorded" in tab.page.locator("main").inner_text()
    assert tab.said == []


@needs_browser
def test_a_report_of_a_program_of_ones_own_is_silent_about_steps(hpcdl, tmp_path, tab):
    """It said ``steps 0`` and ``0 tokens in all``, and promised curves."""
    text = "command: [python, train.py]\nresources: {gpus: 2, walltime: '00:05:00'}\n"
    file = tmp_path / "report.html"
    hpcdl("report", prepared(tmp_path, text=text).path, "--output", file)
    tab.open(file)
    assert tab.page.locator(".tile").count() == 1
    assert "node-hours" in tab.page.locator(".tile").inner_text()
    assert "No step" not in tab.page.locator("main").inner_text()
    assert tab.said == []


@needs_browser
def test_several_runs_lie_over_each_other(hpcdl, tmp_path, tab):
    one, two, file = (
        chained(tmp_path),
        prepared(tmp_path, "training.optimizer.lr=0.5"),
        tmp_path / "both.html",
    )
    lived(two, 1, 0, 30, "completed")
    trained(two, [4.0, 3.0, 2.5])
    hpcdl("report", one.path, two.path, "--output", file)
    tab.open(file)
    assert drawn_points(tab.curve(one.path.name)) == 40
    assert drawn_points(tab.curve(two.path.name)) == 3
    text = tab.page.locator("main").inner_text()
    assert "training.optimizer.lr" in text
    assert "1 ★" in text
    assert tab.said == []


@pytest.mark.slow
@needs_browser
def test_a_million_steps_make_a_small_file_with_the_spike_in_it(hpcdl, tmp_path, tab):
    run, file = prepared(tmp_path), tmp_path / "report.html"
    lived(run, 1, 0, 30, "completed")
    trained(run, [2.0])
    (line,) = run.rank_metrics(0).read_text().splitlines()
    with run.rank_metrics(0).open("w") as records:
        for step in range(1, 1_000_001):
            loss = "77.5" if step == 654_321 else "2.0"
            records.write(
                line.replace('"step": 1,', f'"step": {step},').replace('"loss": 2.0', f'"loss": {loss}')
                + "\n"
            )
    hpcdl("report", run.path, "--output", file)
    assert file.stat().st_size < 5_000_000
    tab.open(file)
    assert 500 < drawn_points(tab.curve("training")) < 3000
    assert 77.5 in tab.page.evaluate("data.runs[0].curves.loss.value")
    assert tab.said == []


def test_a_report_is_named_by_its_run(hpcdl, tmp_path, monkeypatch):
    run = chained(tmp_path)
    monkeypatch.chdir(tmp_path)
    answer = hpcdl("report", run.path)
    assert answer.code == 0
    assert str(tmp_path / f"{run.path.name}.html") in answer.out.replace("\n", "")
    assert (tmp_path / f"{run.path.name}.html").read_text().startswith("<!DOCTYPE html>")


def test_a_report_that_cannot_be_written_or_of_no_run_is_refused(hpcdl, tmp_path):
    run = chained(tmp_path)
    refused = hpcdl("report", run.path, "--output", run.resolved / "file.html")
    assert refused.code == 2
    assert "cannot write" in refused.err
    missing = hpcdl("report", "nothing", "--runs", tmp_path / "runs")
    assert missing.code == 2
    assert "nothing" in missing.err


@pytest.mark.parametrize("verb", ["report", "collect"])
@pytest.mark.parametrize("place", [".", "/"])
def test_a_folder_is_no_file_to_write(hpcdl, tmp_path, monkeypatch, verb, place):
    """For ``-o .`` a hidden file was left in the folder above, and ``-o /`` was an unexpected ValueError."""
    run = chained(tmp_path)
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    before = set(tmp_path.iterdir())
    refused = hpcdl(verb, run.path, "-o", place)
    assert refused.code == 2
    assert f"'{place}' is a directory" in refused.err
    assert (set(tmp_path.iterdir()), list(here.iterdir())) == (before, [])


def test_compare_shows_what_differs_and_marks_the_best(hpcdl, tmp_path):
    one, two = chained(tmp_path), prepared(tmp_path, "training.optimizer.lr=0.5")
    lived(two, 1, 0, 30, "completed")
    trained(two, [4.0, 3.0, 2.5])
    table = hpcdl("compare", one.path, two.path)
    assert table.code == 0
    rows = {line[:26].strip(): line[26:].split() for line in table.out.splitlines()}
    assert rows["training.optimizer.lr"] == ["0.01", "0.5"]
    assert rows["final loss"] == ["1", "*", "2.5"]
    assert rows["loss at step 3"] == ["4.7", "2.5", "*"]
    told = json.loads(hpcdl("compare", one.path, two.path, "--json").out)
    assert told["runs"] == [one.path.name, two.path.name]
    assert told["differs"] == {"training.optimizer.lr": [0.01, 0.5]}
    assert told["figures"]["last_loss"] == {
        "name": "final loss",
        "values": [1.0, 2.5],
        "best": [one.path.name],
    }


def test_runs_of_one_name_are_told_apart_by_their_paths(hpcdl, tmp_path):
    """A run and the copy of it somewhere else; compare ended with a traceback."""
    one = chained(tmp_path)
    other = tmp_path / "backup" / one.path.name
    shutil.copytree(one.path, other, symlinks=True)
    table = hpcdl("compare", one.path, other)
    assert table.code == 0
    assert {str(one.path), str(other)} <= set(table.out.splitlines()[0].split())
    told = json.loads(hpcdl("compare", one.path, other, "--json").out)
    assert told["runs"] == [str(one.path), str(other)]
    assert hpcdl("report", one.path, other, "--output", tmp_path / "both.html").code == 0
    page = (tmp_path / "both.html").read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert [run["run"] for run in data["runs"]] == [str(one.path), str(other)]


def test_one_run_named_in_two_ways_is_one_run(hpcdl, tmp_path, monkeypatch):
    run = chained(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(run.path)
    refused = hpcdl("compare", run.path, "link", "--runs", "runs")
    assert refused.code == 2
    assert "two runs or more" in refused.err


def test_compare_draws_curves(hpcdl, tmp_path):
    one, two, figure = chained(tmp_path), chained(tmp_path), tmp_path / "curves.svg"
    assert hpcdl("compare", one.path, two.path, "--plot", figure).code == 0
    assert figure.read_text().count('id="line2d_') > 4
    refused = hpcdl("compare", one.path, two.path, "--plot", tmp_path / "curves.gif")
    assert refused.code == 2
    assert "neither .svg nor .png" in refused.err


@pytest.mark.parametrize("verb", [("report",), ("compare",), ("watch", "--once")])
def test_a_sweep_is_not_one_run_and_one_is_told_so(hpcdl, tmp_path, verb):
    run = chained(tmp_path)
    write(Group(run.path.parent, "lr-sweep", "local", None, {run.path.name: {}}))
    refused = hpcdl(*verb, "lr-sweep", "--runs", run.path.parent)
    assert refused.code == 2
    assert "lr-sweep is a sweep of 1 runs" in refused.err
    assert run.path.name in refused.err


def read_strictly(text: str):
    """As jq and JavaScript read it, which know no NaN."""

    def refuse(word: str):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_losses_that_are_no_numbers_are_words_in_every_json(hpcdl, tmp_path):
    """list and status printed a bare NaN, which no other reader of JSON takes."""
    run = prepared(tmp_path)
    lived(run, 1, 0, 30, "completed")
    trained(run, [math.inf, 4.0, math.nan])
    where = ("--runs", run.path.parent)
    write(Group(run.path.parent, "lr-sweep", "local", None, {run.path.name: {}}))
    (listed,) = read_strictly(hpcdl("list", "--all", "--json", *where).out)
    told = read_strictly(hpcdl("status", run.path, "--json", *where).out)
    (point,) = read_strictly(hpcdl("status", "lr-sweep", "--json", *where).out)["points"]
    (result,) = read_strictly(hpcdl("results", "lr-sweep", "--json", *where).out)["points"]
    assert [each["last_loss"] for each in (listed, told, point, result)] == ["nan"] * 4
    assert (told["first_loss"], result["first_loss"]) == ("inf", "inf")
    assert hpcdl("status", run.path, *where).code == hpcdl("list", "--all", *where).code == 0
    archive = tmp_path / "run.tar.gz"
    assert hpcdl("collect", run.path, "--output", archive).code == 0
    with tarfile.open(archive) as packed:
        (status,) = [each for each in packed.getnames() if each.endswith("status.json")]
        assert read_strictly(packed.extractfile(status).read().decode())["last_loss"] == "nan"


@pytest.fixture
def unasked(tmp_path, monkeypatch):
    """Two runs whose scripts have ended with 0, when their scheduler does not answer."""
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    runs = [prepared(tmp_path, site="generic-slurm") for _ in range(2)]
    for run in runs:
        lived(run, 1, 0, 0, "running")
        trained(run, [5.0, 4.0])
        run.job_exit(1).write_text('{"exit_code": 0}\n')
    return runs


def test_a_report_tells_the_state_that_was_just_seen(hpcdl, tmp_path, unasked):
    """Nothing is noted of a run whose scheduler does not answer: list said completed, the report running."""
    file = tmp_path / "page.html"
    assert hpcdl("report", unasked[0].path, "--output", file).code == 0
    data = json.loads(file.read_text().partition('id="data">')[2].partition("</script>")[0])
    assert data["runs"][0]["state"] == "completed"
    assert data["runs"][0]["attempts"][0]["state"] == "completed"


def test_what_compares_runs_or_looks_at_one_tells_the_state_that_was_just_seen(hpcdl, unasked):
    (listed, _) = json.loads(hpcdl("list", "--json", "--runs", unasked[0].path.parent).out)
    assert listed["state"] == "completed"
    told = json.loads(hpcdl("compare", *(run.path for run in unasked), "--json").out)
    assert told["figures"]["state"]["values"] == ["completed", "completed"]
    assert "● completed" in hpcdl("watch", unasked[0].path, "--once").out
    write(Group(unasked[0].path.parent, "lr-sweep", "generic-slurm", None, {unasked[0].path.name: {}}))
    swept = json.loads(hpcdl("results", "lr-sweep", "--json", "--runs", unasked[0].path.parent).out)
    assert swept["points"][0]["state"] == "completed"


def test_one_run_is_not_compared_with_itself(hpcdl, tmp_path):
    run = chained(tmp_path)
    refused = hpcdl("compare", run.path, run.path)
    assert refused.code == 2
    assert "two runs or more" in refused.err


def test_a_report_of_several_does_not_take_the_place_of_ones_own(hpcdl, tiny, tmp_path, monkeypatch):
    one, other = (chained(tmp_path) for _ in range(2))
    monkeypatch.chdir(tmp_path)
    for runs in ((one,), (one, other)):
        assert hpcdl("report", *(run.path for run in runs)).code == 0
    names = {path.name for path in tmp_path.glob("*.html")}
    assert names == {f"{one.path.name}.html", f"{one.path.name}-and-1-more.html"}
