"""What is shown of a failed run: lines of text, each with its colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hpcdl.run_folder import RunFolder
from hpcdl.runs.failures.alike import Ending, spans
from hpcdl.runs.failures.diagnosis import Diagnosis
from hpcdl.runs.logs.reading import last_lines
from hpcdl.runs.record import Attempt

Text = tuple[str, str]
"""A line and its style; the style may be empty."""

_LOG_TAIL = 20


def last_words(folder: RunFolder, attempt: Attempt, found: Diagnosis) -> Iterator[Text]:
    """The last words of the rank that failed first, or of the job; then of the others, and the cause."""
    blamed = [each for each in found.endings if found.culprit and found.culprit.rank in each.ranks]
    if found.culprit and blamed:
        log = folder.rank_log(attempt.number, found.culprit.rank)
        whose = f" (the same in {spans(blamed[0].ranks)})" if len(blamed[0].ranks) > 1 else ""
        yield from _quoted(f"{log}{whose}", blamed[0].lines)
    else:
        log = folder.job_log(attempt.number)
        yield from _quoted(str(log), last_lines(log, _LOG_TAIL))
    yield from _endings(each for each in found.endings if each not in blamed)
    if found.cause:
        yield from _cause(found.cause.words, found.cause.advice)


def reasons(record: dict[str, Any]) -> Iterator[Text]:
    """The cause in a status, and what the ranks said last; the same words are there once."""
    if record["cause"]:
        yield from _cause(record["cause"]["words"], record["cause"]["advice"])
    yield from _endings(Ending(tuple(each["ranks"]), (each["last_line"],)) for each in record["endings"])


def _cause(words: str, advice: str) -> Iterator[Text]:
    yield f"cause: {words}", "red"
    yield f"  {advice}", ""


def _endings(endings: Iterator[Ending]) -> Iterator[Text]:
    for each in endings:
        yield f"{spans(each.ranks)} ended with: {each.last_line}", "dim"


def _quoted(where: str, lines: Sequence[str]) -> Iterator[Text]:
    if lines:
        yield f"last lines of {where}", "red"
    for text in lines[-_LOG_TAIL:]:
        yield f"  {text}", ""
