"""Many ranks that end with the same words are shown once."""

from hypothesis import given
from hypothesis import strategies as st

from hpcdl.runs.failures.alike import alike, closing, masked, spans


def traceback(rank, line="ValueError: bad batch"):
    return [
        f"step {rank + 7}  loss 3.{rank}",
        "Traceback (most recent call last):",
        f'  File "/work/train.py", line 12, in rank {rank} at 0x7f{rank}b',
        line,
    ]


def test_identical_tracebacks_of_many_ranks_are_one():
    logs = {rank: traceback(rank) for rank in (0, 1, 2, 3, 7)} | {5: traceback(5, "KeyError: 'lr'")}
    first, other = alike(logs)
    assert (spans(first.ranks), first.last_line) == ("ranks 0-3, 7", "ValueError: bad batch")
    assert (spans(other.ranks), other.last_line) == ("rank 5", "KeyError: 'lr'")


def test_the_culprits_group_is_first_and_shows_its_own_lines():
    logs = {rank: traceback(rank) for rank in range(3)} | {3: traceback(3, "error: gone")}
    assert alike(logs, first=3)[0].ranks == (3,)
    assert "in rank 2 at" in alike(logs, first=2)[0].lines[1]


def test_numbers_addresses_and_times_do_not_tell_ranks_apart_but_words_do():
    assert masked(["01:02:03 [rank4] 0xdeadBEEF on n17:2"]) == masked(["11:22:33 [rank15] 0x7f on n3:41"])
    assert masked(["connection closed"]) != masked(["connection reset"])


def test_closing_begins_with_the_last_traceback_and_what_led_to_it():
    caught, last = traceback(0, "KeyError: 1"), traceback(1)
    assert closing([*caught, "going on", *last]) == last[1:]
    chained = [
        *traceback(0)[1:],
        "",
        "During handling of the above exception, another exception occurred:",
        "",
    ]
    assert closing([*caught, "going on", *chained, *last[1:]]) == [*chained, *last[1:]]
    assert closing(["no", "traceback"]) == ["no", "traceback"]


def test_the_last_line_is_what_was_said_before_an_exit_code():
    assert alike({0: [*traceback(0), "exit code 1", ""]})[0].last_line == "ValueError: bad batch"
    assert alike({0: ["exit code 7"]})[0].last_line == "exit code 7"
    assert alike({0: []})[0].last_line == ""


def test_what_torch_puts_before_a_line_is_taken_off():
    plain = traceback(2)[1:]
    assert closing([f"[rank2]: {line}" for line in plain]) == plain


@given(st.sets(st.integers(0, 40), min_size=1))
def test_spans_name_each_rank_once_and_no_other(ranks):
    named = set()
    for part in spans(ranks).split(maxsplit=1)[1].split(", "):
        first, _, last = part.partition("-")
        numbers = set(range(int(first), int(last or first) + 1))
        assert not numbers & named
        named |= numbers
    assert named == ranks


@given(
    st.dictionaries(
        st.integers(0, 30), st.lists(st.sampled_from(["a", "b 1", "b 2", "[rank1]: c", ""]), max_size=3)
    )
)
def test_every_rank_is_in_exactly_one_group(logs):
    assert sorted(rank for ending in alike(logs) for rank in ending.ranks) == sorted(logs)
