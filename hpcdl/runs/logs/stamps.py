"""When a line of a log was printed, from what the line begins with. Pure.

The engine begins its lines with a full time stamp. So do many programs, by habits of their own: Python's
logging, glog-like tools (torch's own C++ among them), schedulers. A line without one goes with the line above
it in the same file.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

_RANK = re.compile(r"\[rank\d+\]:\s?")  # torch puts it before every line of a traceback, and of C++
_STAMP = re.compile(
    r"\[?(?P<date>\d{4}-\d{2}-\d{2})[T ](?P<time>\d{2}:\d{2}:\d{2})(?:[.,](?P<part>\d{1,9}))?"
    r"\s?(?P<zone>Z|[+-]\d{2}:?\d{2})?\]?[:\s]*"
)
_RATE = re.compile(r" [\d.e+]+[kMBT]? tokens/s")  # of a step that all ranks do, and each says its own
_GLOG = re.compile(
    r"\[?[IWEF](?P<year>\d{4})?(?P<month>\d{2})(?P<day>\d{2}) (?P<time>\d{2}:\d{2}:\d{2})\.(?P<part>\d{1,9})"
    r"(?:\s+\d+)?\s?"  # the thread, by a number that says nothing
)


def stamp(line: str, near: float | None = None) -> float | None:
    """Unix time that ``line`` begins with; None if it begins otherwise.

    A stamp without a zone is in the one of this machine.

    Args:
        line: a line of a log.
        near: when it was printed, to half a year: a stamp without a year has none if this is not known.
    """
    line = _without_rank(line)
    if match := _STAMP.match(line):
        return _moment(match["date"], match, match["zone"] or "")
    match = _GLOG.match(line)
    if match is None or (match["year"] is None and near is None):
        return None
    years = [int(match["year"])] if match["year"] else _years(near or 0.0)
    found = (_moment(f"{year:04}-{match['month']}-{match['day']}", match) for year in years)
    return min(
        (each for each in found if each is not None), key=lambda at: abs(at - (near or at)), default=None
    )


def _years(near: float) -> list[int]:
    year = datetime.fromtimestamp(near, UTC).year
    return [year - 1, year, year + 1]


def _moment(date: str, match: re.Match[str], zone: str = "") -> float | None:
    part = (match["part"] or "")[:6].ljust(6, "0")
    try:
        return datetime.fromisoformat(f"{date}T{match['time']}.{part}{zone}").timestamp()
    except (ValueError, OverflowError):
        return None  # the 31st of February


def _without_rank(line: str) -> str:
    match = _RANK.match(line)
    return line[match.end() :] if match else line


def said(line: str) -> str:
    """What ``line`` says but for the time at which, the rank by which and the speed with which it says so."""
    line = _without_rank(line)
    match = _STAMP.match(line) or _GLOG.match(line)
    return _RATE.sub("", line[match.end() :] if match else line)
