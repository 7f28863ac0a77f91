"""Engines: what runs a decomposition, which of them it can run, and what it keeps in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hpcdl.errors import UsageError
from hpcdl.spec.decomposition import ENGINE_RULES, Rule
from hpcdl.spec.job import Overlap

Attention = Literal["naive", "fused", "flash"]
"""How the core of attention runs: scores in memory; the same with its softmax in one kernel; never whole."""

_ALL = Overlap()
_FSDP = Overlap(optimizer=False)


@dataclass(frozen=True)
class Engine:
    """One training program, as far as its time and memory follow from it."""

    name: str
    rules: tuple[Rule, ...] = ()  # what it cannot run, beyond what no engine can
    attention: Attention = "flash"
    weight_bytes: int = 2  # a parameter, in 16-bit precision
    gradient_bytes: int = 4
    optimizer_bytes: int = 12  # main copy and Adam's moments; main gradients where they are beside others
    update_bytes: int = 30  # read and written a parameter by clipping and the optimizer
    fused: bool = False
    eager: bool = True
    drops: bool = False
    overlap: Overlap = _ALL  # what it can run beside computing
    reduced_bytes: int = 4  # an element of a gradient that is summed over data
    regathers: bool = True  # weights of a recomputed layer once more for its backward
    reshards: bool = False  # ZeRO-2 too keeps weights in shards between microbatches (SHARD_GRAD_OP)
    y_inside: bool = False  # ranks along y sit closer than those along x
    source: str = ""


HPCDL = Engine("hpcdl", ENGINE_RULES, source="hpcdl's engine, counted (docs/engine/memory.md)")
"""The engine that ships with hpcdl."""

_ANY = replace(HPCDL, name="any", rules=(), source="as hpcdl's engine, if it could run everything")

_MEGATRON = Engine(
    "megatron",
    attention="fused",
    fused=True,
    drops=True,
    update_bytes=62,
    gradient_bytes=2,
    optimizer_bytes=16,
    reduced_bytes=2,
    overlap=Overlap(input_gradient=False, gradient_reduction=False, optimizer=False),
    source="fp16 weights and gradients, fp32 main copy, main gradients and moments (arXiv 2104.04473)",
)

ENGINES = {
    engine.name: engine
    for engine in (
        HPCDL,
        _ANY,
        _MEGATRON,
        replace(_ANY, name="megatron-core", source="bf16, fp32 gradients, distributed optimizer"),
        replace(
            _ANY,
            name="fsdp",
            overlap=_FSDP,
            regathers=False,
            reshards=True,
            source="torch FSDP with mixed precision, as llm-foundry runs it: bf16 gathered, fp32 reduced",
        ),
        replace(
            _ANY,
            name="torchtitan",
            weight_bytes=4,
            gradient_bytes=4,
            optimizer_bytes=8,
            overlap=Overlap(input_gradient=False, optimizer=False),
            regathers=False,
            reshards=True,
            source="FSDP2: fp32 shards, gathered in bf16, reduced in fp32; what x sums blocks",
        ),
        replace(_ANY, name="nanotron", source="bf16, fp32 gradients and main copy"),
        replace(
            _ANY,
            name="deepspeed-zero3",
            gradient_bytes=2,
            overlap=_FSDP,
            reduced_bytes=2,
            regathers=False,
            source="ZeRO-3: fp16 weights and gradients, fp32 main copy and moments (arXiv 1910.02054)",
        ),
        replace(
            _MEGATRON,
            name="axonn",
            overlap=Overlap(gradient_reduction=False, optimizer=False),
            reduced_bytes=4,
            regathers=False,
            y_inside=True,
            source="AxoNN on Megatron-LM's model code (arXiv 2502.08145)",
        ),
    )
}
"""By name: hpcdl's own, one without limits, and those whose published runs the cost model is held to."""


def find_engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        UsageError: there is none, with those there are.
    """
    if name not in ENGINES:
        raise UsageError(f"there is no engine {name!r} to plan for", f"known: {', '.join(ENGINES)}")
    return ENGINES[name]
