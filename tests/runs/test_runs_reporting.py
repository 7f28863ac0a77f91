"""What a report says of a run, before anybody draws it."""

import json
import math
import os
from dataclasses import replace

import pytest
from runs.written import BEGAN, TINY, chained, lived, prepared, trained

from hpcdl.run_folder import RunFolder
from hpcdl.runs import shapes, store
from hpcdl.runs.record import RunState
from hpcdl.runs.reports.comparing import differing, figures
from hpcdl.runs.reports.contents import _drawn, view
from hpcdl.runs.reports.page import embedded, page
from hpcdl.runs.reports.recorded import RankAccount, Recorded, recorded
from hpcdl.runs.reports.timeline import spans
from hpcdl.runs.sweeps.groups import Group
from hpcdl.runs.sweeps.results import results
from hpcdl.telemetry import RunEvent, append

NOW = BEGAN + 1000


def read(run: RunFolder) -> Recorded:
    return recorded(run, store.current(run), NOW)


def test_attempts_are_told_in_time_with_the_steps_that_remained_of_them(tmp_path):
    first, second = spans(read(chained(tmp_path)))
    assert (first.submitted, first.began, first.ended) == (BEGAN - 10, BEGAN, BEGAN + 30)
    assert (first.first, first.last) == (1, 15)  # 16 to 20 were repeated
    assert (second.began, second.ended, second.first, second.last) == (BEGAN + 100, BEGAN + 140, 16, 40)


def requeued(run: RunFolder, number: int, begin: float) -> None:
    """The job of the attempt before is run again, and nobody looks: there are only the links of its script."""
    for path, target in (
        (run.start(number - 1), "71"),
        (run.claim(number), "requeued 71"),
        (run.start(number), "71"),
    ):
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)
        os.utime(path, (BEGAN + begin,) * 2, follow_symlinks=False)


def test_an_attempt_ends_when_its_job_is_run_again_and_not_when_somebody_looks(tmp_path):
    """Its node was lost at 30 s, the job began again at 100 s, and status was asked for at 1000 s."""
    run = prepared(tmp_path)
    lived(run, 1, 0, 0, "running")
    requeued(run, 2, 100)
    os.utime(run.start(1), (BEGAN, BEGAN), follow_symlinks=False)
    append(run.launcher_events, RunEvent("observed", NOW, 1, {"state": "requeued", "exit_code": None}))
    trained(run, [5.0, 4.0, 3.0], attempt=1)
    trained(run, [2.5, 2.0], first=3, begin=100, attempt=2)
    first, second = spans(read(run))
    assert first.attempt.state is RunState.REQUEUED
    assert (first.ended, second.began) == (BEGAN + 100, BEGAN + 100)
    assert [(span.first, span.last) for span in (first, second)] == [(1, 2), (3, 4)]


def test_steps_belong_to_their_attempts_whatever_the_clocks_say(tmp_path):
    """Those of the nodes are two minutes ahead: the first attempt had no step, and the second had all."""
    run = prepared(tmp_path)
    lived(run, 1, 0, 30, "paused")
    trained(run, [5.0] * 20, begin=120, attempt=1)
    lived(run, 2, 100, 140, "completed")
    trained(run, [4.0] * 20, first=21, begin=220, attempt=2)
    assert [(span.first, span.last) for span in spans(read(run))] == [(1, 20), (21, 40)]


def test_an_attempt_never_ends_before_it_began(tmp_path):
    """The clock of its node is an hour behind that of the host it was submitted from."""
    run = prepared(tmp_path)
    lived(run, 1, 0, -3600, "completed")
    (span,) = spans(read(run))
    assert (span.began, span.ended) == (BEGAN, BEGAN)


def test_an_attempt_ends_by_the_clock_by_which_it_began(tmp_path):
    """Of four minutes on a node whose clock was five minutes behind nothing was left."""
    run = prepared(tmp_path)
    lived(run, 1, 0, -60, "completed")
    run.start(1).parent.mkdir()
    run.start(1).symlink_to("71")
    os.utime(run.start(1), (BEGAN, BEGAN), follow_symlinks=False)
    os.utime(run.job_exit(1), (BEGAN + 240, BEGAN + 240))
    (span,) = spans(read(run))
    assert (span.began, span.ended) == (BEGAN, BEGAN + 240)


def test_a_run_is_shown_in_the_state_that_it_was_just_seen_in(tmp_path):
    """Its folder still says running where the scheduler cannot be asked, or nothing may be written."""
    run = prepared(tmp_path)
    lived(run, 1, 0, 30, "running")
    seen = replace(store.current(run), state=RunState.COMPLETED, exit_code=0)
    shown = view(recorded(run, seen, NOW), NOW)
    assert (shown["state"], [each["state"] for each in shown["attempts"]]) == ("completed", ["completed"])
    assert figures([recorded(run, seen, NOW)])[0].values == ("completed",)


def test_the_plan_of_a_new_shape_is_compared_with_the_steps_in_that_shape(tmp_path):
    """Resumed on fewer devices it takes four times as long; the median over all steps was of the old shape."""
    run = prepared(tmp_path)
    lived(run, 1, 0, 30, "paused")
    trained(run, [5.0] * 20, attempt=1)
    append(run.launcher_events, RunEvent(shapes.RESHAPED, BEGAN + 50, 0, {"since": 2}))
    assert view(read(run), NOW)["plan"] == []  # nothing is measured in that shape yet
    lived(run, 2, 100, 140, "completed")
    trained(run, [4.0] * 5, first=21, begin=100, attempt=2, slower=4.0)
    shown = view(read(run), NOW)
    assert shown["numbers"]["step_seconds"] == 2.0
    assert shown["numbers"]["training_seconds"] == 20 * 0.5 + 5 * 2.0
    assert [each["steps"] for each in shown["accounts"]] == [5, 5]
    assert sum(each["measured"] for each in shown["plan"]) == pytest.approx(2.0)


def test_node_hours_count_what_was_held_and_not_what_was_waited_for(tmp_path):
    assert read(chained(tmp_path)).node_hours == pytest.approx((30 + 40) / 3600)


def test_an_attempt_that_still_runs_has_no_end(tmp_path):
    run = prepared(tmp_path)
    lived(run, 1, 0, 30, "running")
    (span,) = spans(read(run))
    assert span.ended is None
    assert read(run).node_hours == pytest.approx(1000 / 3600)


def test_an_attempt_whose_node_was_lost_lasted_until_its_last_heartbeat_although_its_log_is_silent(tmp_path):
    run = prepared(tmp_path)
    lived(run, 1, 0, 36_000, "node failed")
    run.job_exit(1).unlink()
    for path, when in ((run.job_log(1), 5), (run.heartbeat(1, 1), 35_990)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (BEGAN + when, BEGAN + when))
    assert read(run).node_hours == pytest.approx(35_990 / 3600)


def test_numbers_are_those_of_the_records(tmp_path):
    shown = view(read(chained(tmp_path)), NOW)
    numbers = shown["numbers"]
    assert (numbers["step"], numbers["first_loss"], numbers["last_loss"]) == (40, 4.9, 1.0)
    assert (numbers["tokens"], numbers["step_seconds"], numbers["mfu"]) == (40 * 256, 0.5, 0.25)
    assert (numbers["memory_gib"], numbers["attempts"]) == (2.0, 2)
    assert shown["curves"]["loss"]["step"] == list(range(1, 41))
    assert [each["seconds"]["idle"] for each in shown["accounts"]] == [0.0, pytest.approx(0.1)]
    assert [each["host"] for each in shown["accounts"]] == ["n0", "n1"]


def test_of_a_program_of_ones_own_no_step_is_known(tmp_path):
    """It was said to have made 0 steps, which took 0 µs."""
    run = prepared(tmp_path, text="command: [python, train.py]\nresources: {gpus: 2, walltime: '00:05:00'}\n")
    lived(run, 1, 0, 30, "completed")
    shown = view(read(run), NOW)["numbers"]
    assert {key for key, value in shown.items() if value is not None} == {"node_hours", "attempts"}
    assert [each.key for each in figures([read(run), read(run)])] == ["state", "node_hours", "attempts"]
    sweep = Group(run.path.parent, "sweep", "local", None, {run.path.name: {"environment.A": "1"}})
    (point,) = results(sweep, [store.current(run)])
    assert {key for key, value in point.numbers.items() if value is not None} == {"node_hours"}


def test_terms_of_the_plan_and_of_the_measurement_each_add_up(tmp_path):
    """Whatever a plan names, nothing of it is dropped on the way to what can be compared."""
    run = chained(tmp_path)
    found = read(run)
    terms = view(found, NOW)["plan"]
    assert sum(each["planned"] for each in terms) == pytest.approx(found.planned["step_seconds"])
    assert sum(each["measured"] for each in terms) == pytest.approx(0.5)
    measured = {each["term"]: each["measured"] for each in terms}
    assert measured["collectives"] == pytest.approx(0.1)
    assert measured["idle and messages"] == pytest.approx(0.05)


def test_a_plan_of_another_decomposition_is_not_compared_with(tmp_path):
    run = chained(tmp_path)
    plan = json.loads(run.plan.read_text())
    plan["candidates"][0]["decomposition"]["data"] = 64
    run.plan.write_text(json.dumps(plan))
    assert view(read(run), NOW)["plan"] == []


def test_losses_that_are_no_numbers_are_words_and_gaps(tmp_path):
    run = prepared(tmp_path)
    lived(run, 1, 0, 30, "failed")
    trained(run, [5.0, math.nan, math.inf])
    shown = view(read(run), NOW)
    assert shown["numbers"]["last_loss"] == "inf"
    assert shown["curves"]["loss"]["value"] == [5.0, None, None]
    assert [words for _, words in shown["curves"]["loss"]["odd"]] == ["nan", "inf"]
    embedded(shown)


def test_a_run_without_steps_and_one_that_was_never_submitted_can_be_shown(tmp_path):
    shown = view(read(prepared(tmp_path)), NOW)
    assert (shown["state"], shown["numbers"]["step"], shown["numbers"]["last_loss"]) == ("prepared", 0, None)
    assert shown["attempts"] == []
    embedded(shown)


def test_a_failure_is_told_with_its_cause_and_the_last_words(tmp_path):
    run = prepared(tmp_path)
    lived(run, 1, 0, 30, "failed")
    run.rank_log(1, 0).write_text(
        "Traceback (most recent call last):\nModuleNotFoundError: No module named 'x'\n"
    )
    failure = view(read(run), NOW)["failure"]
    assert failure["who"].startswith("rank 0 on n0")
    assert "could not import" in failure["cause"]
    assert failure["lines"][-1] == "ModuleNotFoundError: No module named 'x'"


def test_of_many_ranks_the_slowest_are_among_those_shown():
    ranks = [RankAccount(rank, seconds={"compute": 2.0 if rank == 777 else 1.0}) for rank in range(1000)]
    shown = _drawn(ranks)
    assert len(shown) <= 64
    assert 777 in {each.rank for each in shown}
    assert [each.rank for each in shown] == sorted(each.rank for each in shown)


HOSTILE = '</script><script>alert(1)</script><!--\u2028"&amp;'


def test_nothing_a_user_wrote_can_end_the_data(tmp_path):
    run = prepared(tmp_path, f"name={json.dumps(HOSTILE)}")
    text = page([read(run)], NOW)
    assert text.count("<script") == text.count("</script>") == 2
    assert "alert(1)</script>" not in text
    begin = text.index('id="data">') + len('id="data">')
    data = json.loads(text[begin : text.index("</script>", begin)])
    assert data["runs"][0]["name"] == HOSTILE


def test_a_report_holds_no_secret(tmp_path, monkeypatch):
    """It is for mailing; what was asked and the last lines of a log stand in it."""
    token = "hf_" + "a" * 34
    monkeypatch.setenv("MY_SERVICE_TOKEN", "only the shell knows")
    run = prepared(tmp_path, text=TINY.read_text() + f"# hpcdl run --api-key {token}\n")
    lived(run, 1, 0, 30, "failed")
    run.rank_log(1, 0).write_text(
        f"Traceback (most recent call last):\n  login with {token}\nValueError: only the shell knows that\n"
    )
    text = page([read(run)], NOW)
    assert token not in text
    assert "only the shell knows" not in text
    for words in ("--api-key [removed]", "login with [removed]", "ValueError: [removed] that"):
        assert words in text


def test_the_page_names_no_other_place(tmp_path):
    """No address, no import, no style sheet: nothing that a browser would fetch."""
    text = page([read(chained(tmp_path))], NOW)
    style_and_program = text.replace("http://www.w3.org/2000/svg", "")
    for word in (
        "http:",
        "https:",
        "//cdn",
        "url(",
        "@import",
        " src=",
        "import(",
        "fetch(",
        "XMLHttpRequest",
    ):
        assert word not in style_and_program, word
    assert "default-src 'none'" in text


def test_runs_are_compared_by_what_differs_and_at_equal_tokens(tmp_path):
    """The second sees half as many tokens a step: two of its steps are one of the first."""
    one = prepared(tmp_path)
    two = prepared(tmp_path, "training.optimizer.lr=0.5", "name=two")
    for run, losses, tokens in ((one, [5.0, 4.0, 3.0, 2.0], 256), (two, [6.0, 5.5, 5.25, 4.5], 128)):
        lived(run, 1, 0, 36, "completed")
        trained(run, losses, tokens=tokens)
    found = [read(one), read(two)]
    assert differing(found) == {"name": ["tiny", "two"], "training.optimizer.lr": [0.01, 0.5]}
    told = {figure.key: figure for figure in figures(found)}
    assert told["last_loss"].values == (2.0, 4.5)
    assert told["last_loss"].best == (0,)
    assert told["loss_at_step"].values == (2.0, 4.5)
    assert told["loss_at_step"].name == "loss at step 4"
    assert told["loss_at_tokens"].values == (4.0, 4.5)
    assert told["loss_at_tokens"].name == "loss after 512 tokens"
    assert told["node_hours"].values == (0.01, 0.01)
    assert told["node_hours"].best == ()
    assert told["mfu"].words() == ("25.0%", "25.0%")


def test_a_run_that_diverged_is_never_the_best(tmp_path):
    one, two = prepared(tmp_path), prepared(tmp_path)
    for run, losses in ((one, [5.0, math.nan]), (two, [5.0, 4.5])):
        lived(run, 1, 0, 36, "completed")
        trained(run, losses)
    told = {figure.key: figure for figure in figures([read(one), read(two)])}
    assert told["last_loss"].values == ("nan", 4.5)
    assert told["last_loss"].best == (1,)
    assert told["last_loss"].words() == ("nan", "4.5")


def test_runs_without_a_step_have_nothing_to_compare_but_their_states(tmp_path):
    told = [prepared(tmp_path), prepared(tmp_path)]
    keys = [figure.key for figure in figures([read(run) for run in told])]
    assert "state" in keys
    assert "last_loss" not in keys
    assert "loss_at_step" not in keys
