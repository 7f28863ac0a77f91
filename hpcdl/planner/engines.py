"""Engines: what runs a decomposition, which of them it can run, and what it keeps in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hpcdl.errors import UsageError
from hpcdl.planner import keeping
from hpcdl.planner.keeping import Keeping
from hpcdl.spec.decomposition import ENGINE_RULES, Rule
from hpcdl.spec.job import Overlap

Attention = Literal["naive", "fused", "flash"]
"""How attention's core runs: softmax by itself, in fp32; scores with softmax in one kernel; never whole."""

Flash = Literal["first", "second", "latest"]
"""Generation of flash attention; the latest are FlashAttention 3 and cuDNN's."""


@dataclass(frozen=True)
class Kernels:
    """How an engine computes.

    Attributes:
        flash: generation of its flash attention, where it has one.
        fused: residual, dropout and activation are one kernel each, not several.
        eager: the host launches every kernel; not so where steps are compiled or graphs.
        update_bytes: read and written a parameter by clipping and the optimizer.
    """

    flash: Flash = "second"
    fused: bool = False
    eager: bool = True
    update_bytes: int = 30  # gradient, main copy, two moments; three of them and the weight


_EVERYTHING = Overlap()


@dataclass(frozen=True)
class Exchange:
    """How an engine communicates.

    Attributes:
        overlap: what it can run beside computing.
        reduced_bytes: an element of a gradient while it is summed over data.
        regathers: weights of a recomputed layer are gathered once more for its backward.
        reshards: with ZeRO-2 as well weights lie in shards between microbatches (FSDP's SHARD_GRAD_OP).
        copied_bytes: read and written an element that ZeRO-2 or 3 gathers or scatters, between its place and
            the collective's buffer.
        gathers_ahead: new weights of ZeRO-1 are gathered beside the next forward.
        in_pieces: sums of outputs run beside their own product, cut into pieces (tp-comm-overlap).
        splits_messages: ranks along x send a message of the pipeline in parts and gather it after.
        gathers_context: keys and values of a whole sequence are gathered before attention, not passed on.
        sends_ahead: with chunks messages between stages travel beside computing (overlap-p2p).
        y_inside: ranks along y sit closer than those along x.
    """

    overlap: Overlap = _EVERYTHING
    reduced_bytes: int = 4
    regathers: bool = True
    reshards: bool = False
    copied_bytes: int = 0
    gathers_ahead: bool = False
    in_pieces: bool = False
    sends_ahead: bool = True
    splits_messages: bool = False
    gathers_context: bool = False
    y_inside: bool = False


_ALL = Exchange()
_SEPARATE = Exchange(
    Overlap(input_gradient=False, gradient_reduction=False, optimizer=False),
    reduced_bytes=2,
    splits_messages=True,  # Narayanan et al. 2021, section 4.1; DeepSpeed's PartitionedTensor
    sends_ahead=False,
)
# FSDP2 copies what was gathered to where it is used, and gradients into a buffer in fp32 (foreach_all_gather
# and foreach_reduce in torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py): 2 + 2 and 2 + 4 bytes, five
# on average of two gathers and a scatter. FSDP1 casts its flat gradient and divides it: 2 + 4 and 4 + 4.
_SHARDED = Exchange(Overlap(optimizer=False), regathers=False, reshards=True, copied_bytes=5)


@dataclass(frozen=True)
class Engine:
    """One training program, as far as its time and memory follow from it.

    Attributes:
        rules: what it cannot run, beyond what no engine can.
        attention: its kernel; with dropout hpcdl's own is naive.
        kernels: the others.
        drops: whether it applies dropout even where the model does not ask for any.
        exchange: how it communicates.
        keeps: what it keeps in memory.
        tables: its pipelines follow 1F1B's tables, in which stage i of p lets p - i microbatches in before
            its first backward, and cut layers evenly; otherwise all hold what is in flight, cut by FLOPs.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    attention: Attention = "flash"
    drops: bool = False
    kernels: Kernels = Kernels()
    exchange: Exchange = _ALL
    keeps: Keeping = keeping.HPCDL
    tables: bool = False
    source: str = ""


HPCDL = Engine("hpcdl", ENGINE_RULES, source="hpcdl's engine, counted (docs/engine/memory.md)")
"""The engine that ships with hpcdl."""

_ANY = replace(HPCDL, name="any", rules=(), source="as hpcdl's engine, if it could run everything")

_TABLES = Engine("", keeps=keeping.MEGATRON, tables=True)

_MEGATRON = replace(
    _TABLES,
    name="megatron",
    attention="fused",
    drops=True,
    # Gradients to fp32 6, unscaled 8, norm 4, clipped 8, Adam 28, weights from their main copy 6.
    kernels=Kernels(fused=True, update_bytes=60),
    exchange=_SEPARATE,
    source="Megatron-LM before its core: 18 bytes a parameter, masks of dropout (arXiv 2205.05198)",
)

_DEEPSPEED = replace(
    _MEGATRON,
    name="megatron-deepspeed",
    keeps=keeping.MEGATRON_DEEPSPEED,
    source="as Megatron-LM, with DeepSpeed's optimizers (bigscience-workshop/Megatron-DeepSpeed)",
)

_FSDP = Engine(
    "fsdp",
    kernels=Kernels("first"),  # Triton's of FlashAttention 1
    exchange=_SHARDED,
    keeps=keeping.FSDP,
    source="torch FSDP with mixed precision, as llm-foundry runs it (arXiv 2304.11277)",
)

_TORCHTITAN = replace(
    _FSDP,
    name="torchtitan",
    kernels=Kernels(),
    exchange=replace(_SHARDED, overlap=Overlap(input_gradient=False, optimizer=False), gathers_context=True),
    keeps=keeping.TORCHTITAN,
    tables=True,
    source="FSDP2: fp32 shards, gathered in bf16 (arXiv 2410.06511)",
)

ENGINES = {
    engine.name: engine
    for engine in (
        HPCDL,
        _ANY,
        _MEGATRON,
        replace(
            _MEGATRON,
            name="megatron-2022",
            exchange=replace(_SEPARATE, overlap=Overlap(gradient_reduction=False, optimizer=False)),
            source="the same, input gradients summed beside the weights' (arXiv 2205.05198)",
        ),
        _DEEPSPEED,
        replace(
            _TABLES,
            name="megatron-core",
            kernels=Kernels("latest", fused=True),
            exchange=Exchange(Overlap(optimizer=False), gathers_ahead=True, in_pieces=True),
            source="bf16, fp32 gradients, distributed optimizer; overlaps as its README's runs have them",
        ),
        _FSDP,
        _TORCHTITAN,
        replace(
            _TORCHTITAN,
            name="torchtitan-2025",
            kernels=Kernels(fused=True),
            keeps=keeping.TORCHTITAN_2025,
            source="torchtitan from April 2025 on, with torch.compile",
        ),
        replace(
            _TABLES,
            name="nanotron",
            keeps=keeping.NANOTRON,
            source="bf16, its gradients beside fp32 ones, fp32 main copy (huggingface/nanotron)",
        ),
        replace(
            _DEEPSPEED,
            name="deepspeed-zero3",
            exchange=Exchange(Overlap(optimizer=False), reduced_bytes=2, regathers=False),
            keeps=keeping.ZERO3,
            source="ZeRO-3: fp16 weights and gradients, fp32 main copy and moments (arXiv 1910.02054)",
        ),
        replace(
            _MEGATRON,
            name="axonn",
            exchange=Exchange(
                Overlap(gradient_reduction=False, optimizer=False), regathers=False, y_inside=True
            ),
            keeps=keeping.AXONN,
            source="AxoNN on Megatron-LM's model code: 20 bytes (IPDPS 2022, section V-B; arXiv 2502.08145)",
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
