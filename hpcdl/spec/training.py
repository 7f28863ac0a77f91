"""How a model is trained: batch, steps, precision, loss scale and optimizer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hpcdl.spec.frozen import Frozen


class Optimizer(Frozen):
    """AdamW with linear warm-up, cosine decay and clipping by the global norm."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    clip: float = Field(1.0, ge=0, description="largest global gradient norm; 0 switches clipping off")
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="where the cosine ends, as a share of lr")

    @model_validator(mode="after")
    def _betas_in_range(self) -> Optimizer:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must both be at least 0 and below 1")
        return self


class LossScale(Frozen):
    """Dynamic loss scaling, for fp16 only: halved on overflow, doubled after ``window`` clean steps."""

    initial: float = Field(2.0**16, gt=0)
    smallest: float = Field(1.0, gt=0)
    largest: float = Field(2.0**24, gt=0)
    window: int = Field(200, gt=0, description="steps without overflow after which it is doubled")

    @model_validator(mode="after")
    def _in_order(self) -> LossScale:
        if not self.smallest <= self.initial <= self.largest:
            raise ValueError(
                f"initial {self.initial} must lie between smallest {self.smallest} and largest {self.largest}"
            )
        return self


BREAK_EVEN = 0.25
"""Sparsity below which the index costs more than pruning saves: 24·(1 - p) + 2 = 20 (SAMO, IPDPS 2023)."""


class Pruning(Frozen):
    """Magnitude pruning of matrices: what is pruned is zero from then on, and no state is kept of it.

    ``once`` prunes before the step after ``begin``. ``cubic`` lets the sparsity rise from 0 at ``begin`` to
    its full value at ``end`` (Zhu and Gupta, 2017, arXiv 1710.01878), pruning each ``every`` steps.
    ``early-bird`` draws a mask each ``every`` steps and prunes by it when the last ``masks`` of them differ
    by less than ``distance`` of their elements (You et al., ICLR 2020), or at ``end``.
    """

    sparsity: float = Field(gt=0, lt=1, description="share of the weights of the pruned matrices")
    scope: Literal["layer", "global"] = Field(
        "layer", description="whether each matrix loses that share, or all of them together"
    )
    pattern: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]*:[1-9][0-9]*$",
        description="N:M keeps N of every M weights that lie side by side in an output's row; null: any",
    )
    schedule: Literal["once", "cubic", "early-bird"] = "once"
    begin: int = Field(0, ge=0, description="step after which the first weights go")
    end: int | None = Field(None, gt=0, description="step after which the last weights go")
    every: int = Field(100, gt=0, description="steps between two prunings, or two masks compared")
    distance: float = Field(0.1, gt=0, lt=1, description="of early-bird masks, as a share of elements")
    masks: int = Field(5, gt=1, le=8, description="early-bird masks that must agree")
    exclude: tuple[str, ...] = Field(
        ("embedding.*", "head.*"), description="patterns of the names of matrices that stay whole"
    )

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Pruning:
        if self.schedule == "once" and self.end is not None:
            raise ValueError(f"schedule once prunes after step begin ({self.begin}); remove end {self.end}")
        if self.schedule == "cubic" and self.end is None:
            raise ValueError("schedule cubic needs end, the step after which the full sparsity is reached")
        if self.end is not None and self.end <= self.begin:
            raise ValueError(f"end {self.end} must be after begin {self.begin}")
        return self

    @model_validator(mode="after")
    def _pattern_is_the_sparsity(self) -> Pruning:
        if self.pattern is None:
            return self
        kept, of = map(int, self.pattern.split(":"))
        if kept >= of:
            raise ValueError(f"pattern {self.pattern} keeps everything; the first number must be smaller")
        if abs(self.sparsity - (1 - kept / of)) > 1e-3:
            raise ValueError(
                f"pattern {self.pattern} is a sparsity of {1 - kept / of:g}, not {self.sparsity:g}"
            )
        if self.schedule == "cubic" or self.scope == "global":
            raise ValueError(f"pattern {self.pattern} needs schedule once or early-bird and scope layer")
        return self


class Training(Frozen):
    """One training run, whatever the decomposition."""

    global_batch: int = Field(32, gt=0, description="sequences an optimizer step")
    steps: int = Field(100, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    optimizer: Optimizer = Optimizer()
    seed: int = Field(0, ge=0)
    loss_scale: LossScale = LossScale()
    bucket_mib: float = Field(
        6.25,
        ge=1e-6,  # less than one element, so buckets of one
        description="gradients of one bucket, which the optimizer updates at once, MiB of fp32",
    )
    buckets_per_chunk: int = Field(4, gt=0, description="buckets that are reduced in one operation")
    offload_step: Literal["auto", "device", "host"] = Field(
        "auto",
        description="where weights whose optimizer state is in CPU memory are updated; auto: where it is "
        "faster, measured at the start",
    )
    pruning: Pruning | None = None

    @property
    def chunk_mib(self) -> float:
        """Gradients reduced in one operation, MiB of fp32."""
        return self.bucket_mib * self.buckets_per_chunk
