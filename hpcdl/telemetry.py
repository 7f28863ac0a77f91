"""What a run writes about itself: step records, events and exit records, one JSON object each.

Records are appended as whole lines by one writer a file, so a reader needs no lock: a last line
without its newline is still being written and is left for the next read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Record = TypeVar("Record", "StepRecord", "RunEvent")


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step as one rank saw it."""

    step: int
    loss: float
    tokens: int  # of the whole step, over all ranks
    step_seconds: float
    tokens_per_second: float
    grad_norm: float = 0.0  # before clipping, over all ranks
    learning_rate: float = 0.0
    time: float = 0.0  # Unix time at the end of the step
    flops_per_second: float | None = None  # model FLOP/s of this rank; recomputation is not counted
    mfu: float | None = None  # that as a share of the device's peak; None where the peak is not known
    hfu: float | None = None  # likewise with recomputation counted
    memory_peak: int | None = None  # bytes since the process began: of CUDA tensors, or resident on a CPU
    seconds: dict[str, float] = field(default_factory=dict)  # where step_seconds went on this rank
    validation_loss: float | None = None  # on held-out sequences, in steps that end with an evaluation


@dataclass(frozen=True)
class RunEvent:
    """Something that happened to a run; the state of a run is the fold of its events."""

    kind: str
    time: float
    attempt: int = 0
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExitRecord:
    """How one rank ended."""

    rank: int
    host: str
    time: float  # Unix time at which the end began
    exit_code: int
    signal: int | None = None
    exception: str | None = None  # class name
    reason: str | None = None  # one line


def append(path: Path, record: StepRecord | RunEvent) -> None:
    """Append ``record`` to the JSONL file ``path`` as one line, in one write."""
    line = json.dumps(asdict(record), ensure_ascii=False, allow_nan=True) + "\n"
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())


def read(path: Path, kind: type[Record]) -> list[Record]:
    """All complete records of ``path``; none if it does not exist yet."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return list(parse(content, kind))


def parse(content: bytes, kind: type[Record]) -> Iterator[Record]:
    """Records of the complete lines in ``content``; a torn or foreign line is passed over."""
    known = kind.__dataclass_fields__.keys()
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        try:
            fields = json.loads(line)
            yield kind(**{name: value for name, value in fields.items() if name in known})
        except (ValueError, TypeError, AttributeError):
            continue


def write_whole(path: Path, content: str) -> None:
    """Write ``path`` so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)


def write_exit(path: Path, record: ExitRecord) -> None:
    """Write the exit record of one rank, atomically."""
    write_whole(path, json.dumps(asdict(record), ensure_ascii=False) + "\n")


def read_exits(folder: Path) -> list[ExitRecord]:
    """The exit records of one attempt, by rank; files that are not such records are passed over."""
    records = []
    for path in sorted(folder.glob("rank-*.json")):
        try:
            records.append(ExitRecord(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError, OSError):
            continue
    return records
