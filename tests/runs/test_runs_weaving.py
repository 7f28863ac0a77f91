"""Many logs are one text: in the order of time, nothing lost, nothing made up, and said by many only once."""

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from hpcdl.run_folder import RunFolder
from hpcdl.runs.logs.reading import Follower, Line
from hpcdl.runs.logs.stamps import said
from hpcdl.runs.logs.weaving import together, woven

START = datetime(2026, 3, 1, tzinfo=UTC)


def stamped(seconds, text):
    return f"{(START + timedelta(seconds=seconds)).isoformat(timespec='milliseconds')} {text}"


def read(folder, **which):
    return list(woven(tail.new_lines(ended=True) for tail in Follower(folder, 1, **which).tails()))


def test_ranks_are_merged_by_time_and_a_traceback_stays_whole(tmp_path):
    folder = RunFolder(tmp_path)
    folder.logs(1).mkdir(parents=True)
    for rank, lines in enumerate(
        (
            ["warning of a library", stamped(1, "step 1"), stamped(3, "step 2")],
            [
                stamped(2, "step 1"),
                stamped(4, "ended"),
                "Traceback",
                "  File x",
                "ValueError",
                stamped(9, "z"),
            ],
            [stamped(4.5, "other")],
        )
    ):
        folder.rank_log(1, rank).write_text("\n".join(lines) + "\n")
    shown = [(line.rank, said(line.text)) for line in read(folder)]
    assert shown == [
        (0, "warning of a library"), (0, "step 1"), (1, "step 1"), (0, "step 2"), (1, "ended"), (1, "Traceback"),
        (1, "  File x"), (1, "ValueError"), (2, "other"), (1, "z"),
    ]  # fmt: skip
    assert [line.rank for line in read(folder, ranks=[2, 0])] == [0, 0, 0, 2]


def test_a_clock_that_goes_back_puts_nothing_in_disorder(tmp_path):
    folder = RunFolder(tmp_path)
    folder.logs(1).mkdir(parents=True)
    folder.rank_log(1, 0).write_text("".join(stamped(s, f"a{s}") + "\n" for s in (5, 2, 7)))
    folder.rank_log(1, 1).write_text("".join(stamped(s, f"b{s}") + "\n" for s in (4, 6)))
    assert [said(line.text) for line in read(folder)] == ["b4", "a5", "a2", "b6", "a7"]


LOGS = st.lists(
    st.lists(st.tuples(st.floats(0, 8), st.sampled_from(["a", "b", "c", ""])), max_size=12), max_size=5
)


def lines_of(logs, attempt=1):
    return [
        [Line(rank, text, at, attempt) for at, text in sorted(log, key=lambda pair: pair[0])]
        for rank, log in enumerate(logs)
    ]


@given(LOGS, LOGS)
def test_every_line_of_every_log_comes_once_in_the_order_of_each(first, second):
    logs = [[*a, *b] for a, b in zip(lines_of(first), lines_of(second, attempt=2), strict=False)]
    merged = list(woven(logs))
    assert Counter(merged) == Counter(line for log in logs for line in log)
    assert merged == sorted(merged, key=lambda line: (line.attempt, line.time))
    for rank, log in enumerate(logs):
        assert [line for line in merged if line.rank == rank] == log


@given(LOGS)
def test_together_says_of_each_rank_what_it_said_as_often(logs):
    """Property: nothing is lost or attributed to somebody else, and what one rank said twice stays twice."""
    merged = list(woven(lines_of(logs)))
    sayings = list(together(merged))
    told = Counter((rank, said(saying.line.text)) for saying in sayings for rank in saying.ranks)
    assert told == Counter((line.rank, said(line.text)) for line in merged)
    times = [saying.line.time for saying in sayings]
    assert times == sorted(times)


def test_sixty_four_identical_tracebacks_are_one():
    trace = ["Traceback (most recent call last):", '  File "a.py", line 3', "ValueError: no"]
    logs = [
        [
            Line(rank, text, 10 + rank / 100)
            for text in (stamped(rank / 100, "ended by ValueError"), *trace, "")
        ]
        for rank in range(64)
    ]
    logs[7][3] = Line(7, "ValueError: another", 10.07)
    shown = [(said(saying.line.text), len(saying.ranks)) for saying in together(woven(logs))]
    assert shown == [
        ("ended by ValueError", 64), (trace[0], 64), (trace[1], 64), (trace[2], 63), ("", 64),
        ("ValueError: another", 1),
    ]  # fmt: skip


def test_what_is_said_long_after_or_by_the_batch_script_stands_alone():
    lines = [
        Line(0, "a", 0),
        Line(None, "a", 0.1),
        Line(None, "a", 0.2),
        Line(1, "a", 2.0),
        Line(2, "a", 4.5),
    ]
    shown = [(saying.line.rank, sorted(saying.ranks)) for saying in together(lines)]
    assert shown == [(0, [0, 1]), (None, []), (None, []), (2, [2])]


def test_the_same_words_in_two_attempts_are_two():
    assert len(list(together([Line(0, "a", 0, 1), Line(1, "a", 0, 2)]))) == 2
