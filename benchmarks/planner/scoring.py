"""What a published run asks of the planner: model, training, decompositions, engine and machine.

Megatron's tensor parallelism is ``x``; FSDP and ZeRO-3 are ``zero: 3`` over data; hybrid sharding is
data × z, as weights are gathered over z. Where a source is silent a default is taken and noted. What it
leaves open though its authors tuned it (microbatch, interleaving, recomputation) is asked in every form,
and the fastest that fits stands for the run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from choices import choices_of
from machines import Machine, find_machine
from pydantic import ValidationError
from rows import NotScoredError, Row, said
from shapes import model_of

from hpcdl.errors import UsageError
from hpcdl.planner.divisors import divisors
from hpcdl.planner.space import Candidates
from hpcdl.spec.job import Layout, Overlap
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training

_DOUBTFUL = {"axonn_sc24_scaling-015": "its time and its rate, both printed, are 16 % apart"}
"""Rows that contradict themselves, by id."""


@dataclass(frozen=True)
class Question:
    """A row as the planner is asked it.

    Attributes:
        row: what was published.
        choices: the decompositions that the row may have run with; one where it says all.
        engine: key of the planner's engines.
        notes: what was taken where the row is silent.
    """

    row: Row
    model: Model
    training: Training
    choices: Candidates
    engine: str
    overlap: Overlap
    machine: Machine
    layout: Layout
    notes: tuple[str, ...]

    @property
    def sweep(self) -> tuple[Any, ...]:
        """What rows have in common that differ only in how they were run."""
        row = self.row
        return row.file, row.model, row.sequence, row.gpu_type, row.precision, row.gpus, row.batch

    @property
    def measured_seconds(self) -> float | None:
        """Seconds a step: printed, or from the rate that is, with the row's own convention of FLOPs."""
        row, batch = self.row, self.training.global_batch
        if "fp8" in row.precision:
            return None
        if row.seconds:
            return row.seconds
        tokens, ranks = batch * self.model.sequence, self.layout.ranks
        if row.tokens_per_s:
            return tokens / (row.tokens_per_s * ranks)
        if row.tflops:
            recomputed = self.model.recomputed_flops["full"] if row.flops_with_recompute else 0
            return batch * (self.model.train_flops + recomputed) / (row.tflops * 1e12 * ranks)
        peak = self.machine.node.nominal_flops(self.training.precision, self.layout.ranks_per_node)
        return batch * self.model.train_flops / (row.mfu * peak * ranks) if row.mfu and peak else None


def ask(row: Row) -> Question:
    """The question that ``row`` answers.

    Raises:
        NotScoredError: the row does not say enough, or ran what the planner has no words for.
    """
    if row.id in _DOUBTFUL:
        raise NotScoredError(_DOUBTFUL[row.id])
    notes: list[str] = []
    engine = engine_of(row)
    try:
        machine = find_machine(row.machine, row.gpu_type)
        model = model_of(row, notes)
        training = Training(global_batch=said(row.batch, "batch"), precision=_precision(row, machine, notes))
        choices = choices_of(row, model, engine, notes)
    except UsageError as error:
        raise NotScoredError(error.message) from None
    except ValidationError as error:
        raise NotScoredError("; ".join(str(one["msg"]) for one in error.errors())) from None
    return Question(
        row=row,
        model=model,
        training=training,
        choices=choices,
        engine=engine,
        overlap=_overlap(row),
        machine=machine,
        layout=_layout(row, machine),
        notes=tuple(notes),
    )


def engine_of(row: Row) -> str:
    """The planner's engine that stands for the software of a row."""
    printed = f"{row.machine} {row.source} {row.notes} {row.zero_words}"
    for words, engine in _ENGINES:
        if words in printed:
            return engine
    if row.zero == 3:
        return "deepspeed-zero3"
    return "megatron-core" if "flash" in row.attention else "megatron"


_ENGINES = (
    ("framework AxoNN", "axonn"),
    ("2502.08145", "axonn"),
    ("2205.05198", "megatron-2022"),
    ("_2025", "torchtitan-2025"),
    ("FSDP2", "torchtitan"),
    ("FSDP", "fsdp"),
    ("nanotron", "nanotron"),
    ("Megatron-Core", "megatron-core"),
    ("Megatron Bridge", "megatron-core"),
    ("DeepSpeed-3D", "megatron-deepspeed"),
    ("bigscience", "megatron-deepspeed"),
    ("vTrain", "megatron-deepspeed"),
)
"""The first words that a row says name its engine."""


def _overlap(row: Row) -> Overlap:
    """Which collectives run beside computation: all, unless the row names AxoNN's that did."""
    if not row.overlap:
        return Overlap()
    return Overlap(
        input_gradient="OAR" in row.overlap,
        weight_scatter="ORS" in row.overlap,
        weight_gather="OAG" in row.overlap,
    )


def _precision(row: Row, machine: Machine, notes: list[str]) -> str:
    named = re.search(r"fp8|bf16|fp16|fp32", row.precision)
    if named is None:
        raise NotScoredError("precision not stated")
    if named.group() == "fp8":
        notes.append("fp8: the planner has none, so memory alone is compared, as of bf16")
        return "bf16"
    if named.group() not in machine.node.device.peak_tflops:
        raise NotScoredError(f"{row.gpu_type} does not compute in {row.precision}")
    return named.group()


def _layout(row: Row, machine: Machine) -> Layout:
    """Whole nodes, as few as can be; the row's GPUs a node where it says them."""
    ranks = said(row.gpus, "number of GPUs")
    a_node = max(count for count in divisors(ranks) if count <= (row.gpus_per_node or machine.node.devices))
    cores = max(1, machine.node.usable_cores // a_node)
    return Layout(nodes=ranks // a_node, ranks_per_node=a_node, cores_per_rank=cores)
