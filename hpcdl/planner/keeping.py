"""What a training program keeps in memory, beyond what its decomposition says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

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


@dataclass(frozen=True)
class Keeping:
    """How much an engine keeps.

    Attributes:
        bf16, fp16: of a parameter; in fp32 all keep the same.
        selective: what it recomputes selectively.
        unrotated: queries and keys stay beside those that rotary positions made of them.
        inputs: with sequence parallelism what products gathered over x stays whole until the backward.
        outputs: a stage's output stays until its backward, though only its gradient is needed.
        logit_bytes, split_logit_bytes: of one logit while 16-bit training computes the loss; the second where
            the vocabulary is cut.
        bucket_bytes: room in which gradients are reduced; None: two chunks of ``training.bucket_mib``.
        groups: communicators over several axes, such as that of the gradients' norm.
        fp32_shards: ZeRO-3 keeps fp32 weights, which are their own main copy, and gathers them in 16 bits.
        layers_gathered: layers whose weights are there at once with ZeRO-3; 0: it gathers by matrix.
        live_weights: elements that it keeps gathered where it gathers by matrix.
        stage_gathered: a pipeline's stage keeps gathered weights and whole gradients between microbatches.
    """

    bf16: Recipe = MIXED
    fp16: Recipe = MIXED
    selective: Selective = "core"
    unrotated: bool = False
    inputs: bool = False
    outputs: bool = False
    logit_bytes: int = 10
    split_logit_bytes: int = 10
    bucket_bytes: int | None = 0
    groups: int = 1
    fp32_shards: bool = False
    layers_gathered: int = 1
    live_weights: int = 0
    stage_gathered: bool = False

    def recipe(self, precision: str) -> Recipe:
        """What it keeps of a parameter in ``precision``."""
        return {"bf16": self.bf16, "fp16": self.fp16}.get(precision, FP32)


HPCDL = Keeping(selective="activations", unrotated=True, bucket_bytes=None)
MEGATRON = Keeping(groups=2)
_ZERO_BUCKET = 2 * 500_000_000  # DeepSpeed's default reduce_bucket_size, in 16 bits
# Gradients of fp16 are flattened and copied to fp32 for the update (its stage_1_and_2.py), those of bf16 lie
# beside fp32 ones (bf16_optimizer.py).
MEGATRON_DEEPSPEED = Keeping(
    fp16=Recipe(2, 2, 12, updating=6),
    bf16=Recipe(2, 6, 12),
    outputs=True,
    bucket_bytes=_ZERO_BUCKET,
    groups=2,
)
ZERO3 = Keeping(
    fp16=Recipe(2, 2, 12, updating=6),
    bf16=Recipe(2, 2, 12, updating=4),
    bucket_bytes=_ZERO_BUCKET,
    groups=2,
    layers_gathered=0,
    live_weights=1_000_000_000,  # its default stage3_max_live_parameters
)
FSDP = Keeping(
    logit_bytes=4,  # 16-bit logits and their gradients: a fused cross-entropy
    split_logit_bytes=4,
    groups=0,
    fp32_shards=True,
    layers_gathered=2,
)
TORCHTITAN = Keeping(
    selective="operators",
    outputs=True,
    logit_bytes=12,  # fp32 log-probabilities and two gradients of that size
    split_logit_bytes=18,  # four in fp32 and the 16-bit ones: softmax of DTensor
    groups=0,
    fp32_shards=True,
    layers_gathered=2,
    stage_gathered=True,
)
# Where the model is compiled so is the loss: logits and their gradient in 16 bits (pytorch/torchtitan #1033).
TORCHTITAN_2025 = replace(TORCHTITAN, logit_bytes=4)
NANOTRON = Keeping(bf16=Recipe(2, 6, 12), inputs=True, groups=2)
AXONN = Keeping(fp16=Recipe(2, 2, 16), groups=2)
