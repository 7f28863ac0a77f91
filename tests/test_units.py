import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl import units


@pytest.mark.parametrize(
    ("text", "count"),
    [("40GiB", 40 * 2**30), ("512MB", 512_000_000), ("1.5k", 1500), ("7", 7), (12, 12), ("2 TiB", 2 * 2**40)],
)
def test_bytes_are_read_in_both_bases(text, count):
    assert units.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "40 GiBs", "4,0GB"])
def test_bytes_that_are_no_size_are_refused_with_their_text(text):
    with pytest.raises(ValueError, match="is not a size"):
        units.parse_bytes(text)


@given(st.integers(1, 10**8))
def test_walltime_survives_a_round_trip(seconds):
    assert units.parse_walltime(units.format_walltime(seconds)) == seconds


@pytest.mark.parametrize("text", ["1h", "30", "00:60:00", "00:00:00", "1:00", "-1:00:00:00"])
def test_walltime_in_any_other_spelling_is_refused(text):
    with pytest.raises(ValueError, match="walltime"):
        units.parse_walltime(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5e-7, "0 µs"),
        (0.85, "850 ms"),
        (12.34, "12.3 s"),
        (125, "2 min 05 s"),
        (7500, "2 h 05 min"),
        (820_800, "9.5 days"),
    ],
)
def test_seconds_are_printed_as_a_person_would_say_them(seconds, text):
    assert units.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [("300B", 3e11), ("1.4t", 1.4e12), ("5e9", 5e9), (" 12 k ", 12_000), ("7", 7), ("1e3M", 1e9)],
)
def test_counts_are_read_with_a_suffix(text, count):
    assert units.parse_count(text) == count


@pytest.mark.parametrize("text", ["", "B", "0", "0B", "-5B", "3 billion", "1e400", "inf", "nan", "1,000"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(ValueError, match="is not a count above zero"):
        units.parse_count(text)


@pytest.mark.parametrize(
    ("count", "text"), [(6.7e9, "6.7B"), (12_400, "12.4k"), (1e15, "1P"), (7, "7"), (1.5e12, "1.5T")]
)
def test_counts_are_printed_with_a_suffix(count, text):
    assert units.format_count(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(512, "512 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**41, "2.0 TiB")]
)
def test_bytes_are_printed_in_binary_units(count, text):
    assert units.format_bytes(count) == text
