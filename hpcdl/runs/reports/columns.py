"""The step records of one rank as columns of numbers, read as the file grows; a million steps fit."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

from hpcdl.telemetry import StepRecord, open_file, parse

NUMBERS = (
    "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "step_seconds", "time", "mfu", "hfu",
    "memory_peak",
)  # fmt: skip
"""Columns, named as in ``StepRecord``; not a number where a record has none."""

_CHUNK_BYTES = 1 << 22


class Columns:
    """The steps of one rank as they led to where it stands (see ``metrics.steps``).

    Args:
        path: its file of step records; it may grow, or not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self.step = array("q")
        self.attempt = array("q")  # never falls; 0 where a record does not name its attempt
        self.numbers = {name: array("d") for name in NUMBERS}
        self.validation: dict[int, float] = {}  # loss on held-out sequences, by step

    def __len__(self) -> int:
        return len(self.step)

    def update(self) -> bool:
        """Read what came since the last call; whether that was anything."""
        before = self._offset
        for content in self._whole_lines():
            for record in parse(content, StepRecord):
                self._add(record)
        return self._offset > before

    def _whole_lines(self) -> Iterator[bytes]:
        try:
            with open_file(self._path) as file:
                file.seek(self._offset)
                rest = b""
                while chunk := file.read(_CHUNK_BYTES):
                    whole, newline, rest = (rest + chunk).rpartition(b"\n")
                    self._offset += len(whole) + len(newline)
                    yield whole + newline
        except FileNotFoundError:
            return

    def _add(self, record: StepRecord) -> None:
        if self.step and record.step <= self.step[-1]:
            self._take_back(record.step)
        self.step.append(record.step)
        self.attempt.append(record.attempt)
        for name, column in self.numbers.items():
            value = getattr(record, name)
            column.append(float("nan") if value is None else value)
        if record.validation_loss is not None:
            self.validation[record.step] = record.validation_loss

    def _take_back(self, step: int) -> None:
        """Forget ``step`` and what followed: the run went on from before it."""
        kept = bisect_left(self.step, step)
        del self.step[kept:], self.attempt[kept:]
        for column in self.numbers.values():
            del column[kept:]
        self.validation = {each: loss for each, loss in self.validation.items() if each < step}
