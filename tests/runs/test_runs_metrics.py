"""Where training stands, from the records of its steps."""

from dataclasses import replace

from hpcdl.run_folder import RunFolder
from hpcdl.runs.metrics import Progress, lately, newest, planned_step_seconds, progress, steps
from hpcdl.telemetry import StepRecord, append


def record(step, loss, seconds):
    return StepRecord(step, loss, 100, seconds, 100 / seconds)


def test_progress_leaves_the_first_step_out_of_the_rate():
    """The first step warms up: it allocates, connects and compiles."""
    done = progress([record(1, 5.0, 10.0), record(2, 4.0, 1.0), record(3, 3.0, 2.0), record(4, 2.0, 1.0)])
    assert (done.step, done.first_loss, done.last_loss) == (4, 5.0, 2.0)
    assert (done.step_seconds, done.tokens_per_second, done.seconds) == (1.0, 100.0, 14.0)


def test_progress_of_nothing_and_of_one_step():
    assert progress([]) == Progress()
    assert progress([record(1, 5.0, 2.0)]).step_seconds == 2.0


def test_the_validation_loss_is_that_of_the_newest_evaluation():
    records = [record(1, 5.0, 1.0), record(2, 4.0, 1.0), record(3, 3.0, 1.0), record(4, 2.0, 1.0)]
    records[1] = replace(records[1], validation_loss=4.5)
    records[2] = replace(records[2], validation_loss=3.5)
    assert progress(records).validation_loss == 3.5
    assert progress(records[:1]).validation_loss is None


def test_steps_repeated_after_a_restart_count_as_they_ran_last(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics.mkdir()
    for each in (record(1, 5.0, 1.0), record(2, 4.0, 1.0), record(2, 3.9, 1.0), record(3, 3.0, 1.0)):
        append(folder.rank_metrics(0), each)
    assert [each.loss for each in steps(folder)] == [5.0, 3.9, 3.0]


def test_a_run_that_went_on_from_a_checkpoint_stands_where_its_newest_step_is(tmp_path):
    """It had reached step 4, and begins again after step 1."""
    folder = RunFolder(tmp_path)
    folder.metrics.mkdir()
    assert newest(folder) is None
    for step in (1, 2, 3, 4, 2):
        append(folder.rank_metrics(0), record(step, 5.0, 1.0))
    assert [each.step for each in steps(folder)] == [1, 2]
    assert newest(folder) == steps(folder)[-1]


def test_planned_step_is_that_of_the_plans_best(tmp_path):
    folder = RunFolder(tmp_path)
    assert planned_step_seconds(folder) is None
    folder.plan.write_text('{"candidates": [{"step_seconds": 0.25}, {"step_seconds": 9}]}')
    assert planned_step_seconds(folder) == 0.25
    folder.plan.write_text('{"candidates": []}')
    assert planned_step_seconds(folder) is None


def test_progress_says_where_the_time_went_after_the_first_step():
    def spent(step, mfu, **seconds):
        return StepRecord(step, 1.0, 100, 1.0, 100.0, mfu=mfu, hfu=2 * mfu, seconds=seconds)

    done = progress(
        [
            spent(1, 0.1, compute=9.0),
            spent(2, 0.3, compute=6.0, all_reduce=1.0, p2p=1.0, idle=2.0),
            spent(3, 0.4, compute=6.0, optimizer=2.0, broadcast=1.0, other=1.0),
        ]
    )
    assert (done.mfu, done.hfu) == (0.35, 0.7)
    assert done.spent == {"compute": 0.6, "communication": 0.15, "idle": 0.1, "optimizer": 0.1, "other": 0.05}


def test_progress_of_records_without_accounts_knows_none():
    done = progress([record(1, 5.0, 1.0), record(2, 4.0, 1.0)])
    assert (done.mfu, done.hfu, done.spent) == (None, None, {})


def test_the_newest_steps_are_those_of_the_newest_attempt_and_no_file_is_read_whole(tmp_path):
    """Following a run of 50,000 steps read all of them twice a second."""
    folder = RunFolder(tmp_path)
    folder.metrics.mkdir()
    assert lately(folder) == []
    for step in range(1, 1001):
        append(folder.rank_metrics(0), replace(record(step, 5.0, 9.0), attempt=1))
    assert 10 < len(lately(folder)) < 200
    assert lately(folder)[-1].step == 1000
    for step in (991, 992, 993):
        append(folder.rank_metrics(0), replace(record(step, 4.0, 1.0), attempt=2))
    assert [each.step for each in lately(folder)] == [991, 992, 993]
    assert progress(lately(folder)).step_seconds == 1.0
