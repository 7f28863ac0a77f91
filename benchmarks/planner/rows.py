"""Published runs as typed rows: one line of a CSV file each, what its source does not say is None.

The columns are described in ``measured/README.md``. A cell may say more than its value, such as
``3 (FSDP2)`` or ``none (assumed)``; the words are kept, as they tell which software ran.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpcdl.errors import UsageError

MEASURED = Path(__file__).parent / "measured"
"""Our own copies of published figures."""

MemoryKind = Literal["allocated", "reserved", "device"]
_NEEDED = ("id", "layers", "hidden", "gpus", "global_batch")


class NotScoredError(Exception):
    """Why a row asks nothing that the planner could answer."""


@dataclass(frozen=True)
class Row:
    """One published run, or one that ran out of memory (``fits`` False).

    Degrees are ranks; batches are sequences; ``memory`` is GiB of the fullest rank and ``memory_kind`` says
    what was measured. ``chunks`` is a pipeline's virtual stages a rank, 0 where the source says as many as
    there are layers for. The two parts of ``seconds`` are computation and communication that nothing hides.
    ``zero_words`` are the words beside the ZeRO stage.
    """

    id: str
    file: str
    model: str
    parameters: float | None
    layers: int | None
    hidden: int | None
    heads: int | None
    kv_heads: int | None
    ffn: int | None
    gated: bool | None
    vocab: int | None
    sequence: int | None
    gpus: int | None
    gpus_per_node: int | None
    gpu_type: str
    machine: str
    precision: str
    tensor: int | None
    pipeline: int | None
    data: int | None
    context: int | None
    expert: int | None
    chunks: int | None
    schedule: str
    microbatch: int | None
    batch: int | None
    recompute: str
    zero: int | None
    zero_words: str
    sequence_parallel: bool | None
    offload: str
    attention: str
    overlap: str
    seconds: float | None
    compute_seconds: float | None
    communication_seconds: float | None
    tokens_per_s: float | None
    tflops: float | None
    flops_with_recompute: bool
    mfu: float | None
    memory: float | None
    memory_kind: MemoryKind | None
    fits: bool | None
    source: str
    notes: str


def read_rows(folder: Path, name: str = "*") -> tuple[list[Row], list[str]]:
    """All rows of the files ``name`` of ``folder``, and the names of files that hold no runs.

    Raises:
        UsageError: there is no such file, none holds runs, or a cell is not what its column holds.
    """
    paths = sorted(folder.glob(f"{name}.csv"))
    if not paths:
        found = ", ".join(path.stem for path in sorted(folder.glob("*.csv"))) or "none"
        raise UsageError(f"there is no file {name}.csv in {folder}; files there: {found}")
    others = [path.stem for path in paths if _missing(path)]
    if len(others) == len(paths):
        raise UsageError(
            f"{paths[0]} lacks the columns {', '.join(_missing(paths[0]))}: its lines are no runs"
        )
    return [row for path in paths if path.stem not in others for row in _rows_of(path)], others


def _missing(path: Path) -> list[str]:
    with path.open(newline="") as file:
        header = next(csv.reader(file), [])
    return [name for name in _NEEDED if name not in header]


def _rows_of(path: Path) -> Iterator[Row]:
    with path.open(newline="") as file:
        for line, cells in enumerate(csv.DictReader(file), start=2):
            try:
                yield parse_row(path.stem, cells)
            except ValueError as error:
                raise UsageError(f"{path}, line {line}: {error}") from error


def parse_row(file: str, cells: dict[str, str]) -> Row:
    """One line of ``file``.

    Raises:
        ValueError: a cell is not what its column holds.
    """
    text = {name: (value or "").strip() for name, value in cells.items() if name}

    def words(name: str) -> str:
        return text.get(name, "")

    zero = re.match(r"(\d)", words("zero"))
    return Row(
        id=words("id"),
        file=file,
        model=words("model"),
        parameters=_scaled(_number(text, "params_b"), 1e9),
        layers=_count(text, "layers"),
        hidden=_count(text, "hidden"),
        heads=_count(text, "heads"),
        kv_heads=_count(text, "kv_heads"),
        ffn=_count(text, "ffn"),
        gated=_flag(text, "gated_mlp"),
        vocab=_count(text, "vocab"),
        sequence=_count(text, "seq"),
        gpus=_count(text, "gpus"),
        gpus_per_node=_count(text, "gpus_per_node"),
        gpu_type=words("gpu_type"),
        machine=words("machine"),
        precision=words("precision"),
        tensor=_count(text, "tp"),
        pipeline=_count(text, "pp"),
        data=_count(text, "dp"),
        context=_count(text, "cp"),
        expert=_count(text, "ep"),
        chunks=0 if words("vpp").startswith("max") else _count(text, "vpp"),
        schedule=words("schedule"),
        microbatch=_count(text, "microbatch"),
        batch=_count(text, "global_batch"),
        recompute=words("recompute"),
        zero=int(zero.group(1)) if zero else None,
        zero_words=words("zero"),
        sequence_parallel=_flag(text, "seq_parallel"),
        offload=words("offload"),
        attention=words("attention"),
        overlap=words("overlap"),
        seconds=_number(text, "step_time_s"),
        compute_seconds=_number(text, "compute_s"),
        communication_seconds=_number(text, "exposed_comm_s"),
        tokens_per_s=_number(text, "tokens_per_s_per_gpu"),
        tflops=_number(text, "tflops_per_gpu"),
        flops_with_recompute=words("tflops_kind").startswith("hardware"),
        mfu=_number(text, "mfu"),
        memory=_number(text, "memory_gib"),
        memory_kind=_memory_kind(words("memory_kind")) if words("memory_gib") else None,
        fits=_flag(text, "fits"),
        source=words("source"),
        notes=words("notes"),
    )


def _memory_kind(words: str) -> MemoryKind:
    """What was measured; a peak that a framework printed without saying which is its own allocator's."""
    if "nvidia-smi" in words:
        return "device"
    return "reserved" if "reserved" in words else "allocated"


def _number(text: dict[str, str], name: str) -> float | None:
    value = text.get(name, "")
    if not value:
        return None
    try:
        return float(value.split(" (")[0])
    except ValueError:
        raise ValueError(f"{name} {value!r} is not a number") from None


def _count(text: dict[str, str], name: str) -> int | None:
    value = _number(text, name)
    if value is not None and (value < 1 or value != int(value)):
        raise ValueError(f"{name} {text[name]!r} is not a positive whole number")
    return None if value is None else int(value)


def _flag(text: dict[str, str], name: str) -> bool | None:
    value = text.get(name, "").split(" ")[0]
    if value not in ("yes", "no", ""):
        raise ValueError(f"{name} {text[name]!r} is neither yes nor no")
    return value == "yes" if value else None


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def said(value: int | None, name: str) -> int:
    """A cell that cannot be done without.

    Raises:
        NotScoredError: it is empty.
    """
    if value is None:
        raise NotScoredError(f"{name} not stated")
    return value
