"""Engines: what runs a decomposition, which of them it can run, and what it keeps in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hpcdl.errors import UsageError
from hpcdl.spec.decomposition import ENGINE_RULES, Rule
from hpcdl.spec.job import Overlap

Attention = Literal["naive", "fused", "flash"]
"""How attention's core runs: softmax by itself, in fp32; scores with softmax in one kernel; never whole."""

Selective = Literal["core", "activations", "operators"]
"""What selective recomputation makes again: attention's core (Korthikanti et al. 2022); the activation
function as well; or all but the outputs of every other product and of attention (torchtitan's op)."""


@dataclass(frozen=True)
class Recipe:
    """Bytes a parameter in training, none of it shared with other ranks."""

    weights: int
    gradients: int
    optimizer: int  # moments and main copy
    updating: int = 0  # gradients that are copied for the update, and gone after it


FP32 = Recipe(4, 4, 8)
MIXED = Recipe(2, 4, 12)
"""16-bit weights, fp32 gradients and main copy."""

_EVERYTHING = Overlap()


@dataclass(frozen=True)
class Exchange:
    """How an engine communicates.

    Attributes:
        overlap: what it can run beside computing.
        reduced_bytes: an element of a gradient while it is summed over data.
        regathers: weights of a recomputed layer are gathered once more for its backward.
        reshards: with ZeRO-2 as well weights lie in shards between microbatches (FSDP's SHARD_GRAD_OP).
        gathers_ahead: new weights of ZeRO-1 are gathered beside the next forward.
        in_pieces: sums of outputs run beside their own product, cut into pieces (tp-comm-overlap).
        y_inside: ranks along y sit closer than those along x.
    """

    overlap: Overlap = _EVERYTHING
    reduced_bytes: int = 4
    regathers: bool = True
    reshards: bool = False
    gathers_ahead: bool = False
    in_pieces: bool = False
    y_inside: bool = False


_ALL = Exchange()
_SEPARATE = Exchange(
    Overlap(input_gradient=False, gradient_reduction=False, optimizer=False), reduced_bytes=2
)


@dataclass(frozen=True)
class Engine:
    """One training program, as far as its time and memory follow from it.

    Attributes:
        rules: what it cannot run, beyond what no engine can.
        bf16, fp16: what it keeps of a parameter; in fp32 all keep the same.
        attention: its kernel; with dropout hpcdl's own is naive.
        drops: whether it applies dropout even where the model does not ask for any.
        selective: what it recomputes selectively.
        warm_up: stage i of p lets p - i microbatches in before its first backward (1F1B); otherwise all
            stages hold as many as are in flight.
        even_stages: layers are cut evenly, with embedding and head as two of them if that divides.
        keeps_unrotated: queries and keys stay beside those that rotary positions made of them.
        keeps_inputs: with sequence parallelism what products gathered over x stays whole until the backward.
        keeps_outputs: a stage's output stays until its backward, though only its gradient is needed.
        logit_bytes, split_logit_bytes: of one logit while 16-bit training computes the loss; the second where
            the vocabulary is cut.
        bucket_bytes: room in which gradients are reduced; None: two chunks of ``training.bucket_mib``.
        groups: communicators over several axes, such as that of the gradients' norm.
        fp32_shards: ZeRO-3 keeps fp32 weights, which are their own main copy, and gathers them in 16 bits.
        gathered: layers whose weights are there at once with ZeRO-3; 0: one matrix, or ``live_weights``.
        live_weights: elements that ZeRO-3 keeps gathered where it gathers by matrix.
        keeps_gathered: a pipeline's stage keeps gathered weights and whole gradients between microbatches.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    attention: Attention = "flash"
    update_bytes: int = 30  # read and written a parameter by clipping and the optimizer
    fused: bool = False
    eager: bool = True
    drops: bool = False
    exchange: Exchange = _ALL
    bf16: Recipe = MIXED
    fp16: Recipe = MIXED
    selective: Selective = "core"
    warm_up: bool = False
    even_stages: bool = False
    keeps_unrotated: bool = False
    keeps_inputs: bool = False
    keeps_outputs: bool = False
    logit_bytes: int = 10
    split_logit_bytes: int = 10
    bucket_bytes: int | None = 0
    groups: int = 1
    fp32_shards: bool = False
    gathered: int = 1
    live_weights: int = 0
    keeps_gathered: bool = False
    source: str = ""

    def recipe(self, precision: str) -> Recipe:
        """What it keeps of a parameter in ``precision``."""
        return {"bf16": self.bf16, "fp16": self.fp16}.get(precision, FP32)


HPCDL = Engine(
    "hpcdl",
    ENGINE_RULES,
    selective="activations",
    keeps_unrotated=True,
    bucket_bytes=None,
    source="hpcdl's engine, counted (docs/engine/memory.md)",
)
"""The engine that ships with hpcdl."""

_ANY = replace(HPCDL, name="any", rules=(), source="as hpcdl's engine, if it could run everything")

_STATIC = Engine("", warm_up=True, even_stages=True, groups=2)

_MEGATRON = replace(
    _STATIC,
    name="megatron",
    attention="fused",
    fused=True,
    drops=True,
    update_bytes=62,
    exchange=_SEPARATE,
    source="Megatron-LM before its core: 18 bytes a parameter, masks of dropout (arXiv 2205.05198)",
)

_ZERO_BUCKET = 2 * 500_000_000  # DeepSpeed's default reduce_bucket_size, in 16 bits

_DEEPSPEED = replace(
    _MEGATRON,
    name="megatron-deepspeed",
    fp16=Recipe(2, 2, 12, updating=6),
    bf16=Recipe(2, 6, 12),
    keeps_outputs=True,
    bucket_bytes=_ZERO_BUCKET,
    source="DeepSpeed: fp16 gradients are flattened and copied to fp32 for the update (stage_1_and_2.py), "
    "bf16 ones lie beside fp32 ones (bf16_optimizer.py)",
)

_FSDP = Engine(
    "fsdp",
    logit_bytes=4,  # 16-bit logits and their gradients: a fused cross-entropy
    split_logit_bytes=4,
    groups=0,
    exchange=Exchange(Overlap(optimizer=False), regathers=False, reshards=True),
    fp32_shards=True,
    gathered=2,
    source="torch FSDP with mixed precision, as llm-foundry runs it (arXiv 2304.11277)",
)

ENGINES = {
    engine.name: engine
    for engine in (
        HPCDL,
        _ANY,
        _MEGATRON,
        _DEEPSPEED,
        replace(
            _STATIC,
            name="megatron-core",
            exchange=Exchange(Overlap(optimizer=False), gathers_ahead=True, in_pieces=True),
            source="bf16, fp32 gradients, distributed optimizer; overlaps as its README's runs have them",
        ),
        _FSDP,
        replace(
            _FSDP,
            name="torchtitan",
            exchange=Exchange(Overlap(input_gradient=False, optimizer=False), regathers=False, reshards=True),
            selective="operators",
            warm_up=True,
            even_stages=True,
            keeps_outputs=True,
            logit_bytes=12,  # fp32 log-probabilities and two gradients of that size
            split_logit_bytes=18,  # four in fp32 and the 16-bit ones: softmax of DTensor
            keeps_gathered=True,
            source="FSDP2: fp32 shards, gathered in bf16 (arXiv 2410.06511)",
        ),
        replace(
            _STATIC,
            name="nanotron",
            bf16=Recipe(2, 6, 12),
            keeps_inputs=True,
            source="bf16, its gradients beside fp32 ones, fp32 main copy (huggingface/nanotron)",
        ),
        replace(
            _DEEPSPEED,
            name="deepspeed-zero3",
            exchange=Exchange(Overlap(optimizer=False), reduced_bytes=2, regathers=False),
            bf16=Recipe(2, 2, 12, updating=4),
            keeps_outputs=False,
            gathered=0,
            live_weights=1_000_000_000,  # its default stage3_max_live_parameters
            source="ZeRO-3: fp16 weights and gradients, fp32 main copy and moments (arXiv 1910.02054)",
        ),
        replace(
            _MEGATRON,
            name="axonn",
            exchange=Exchange(
                Overlap(gradient_reduction=False, optimizer=False), regathers=False, y_inside=True
            ),
            fp16=Recipe(2, 2, 16),
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
