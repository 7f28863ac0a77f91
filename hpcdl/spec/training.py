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


class Training(Frozen):
    """One training run, whatever the decomposition."""

    global_batch: int = Field(32, gt=0, description="sequences an optimizer step")
    steps: int = Field(100, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    optimizer: Optimizer = Optimizer()
    seed: int = Field(0, ge=0)
    loss_scale: LossScale = LossScale()
    bucket_mib: float = Field(
        6.25, gt=0, description="gradients of one bucket, which the optimizer updates at once, MiB of fp32"
    )
    buckets_per_chunk: int = Field(4, gt=0, description="buckets that are reduced in one operation")

    @property
    def chunk_mib(self) -> float:
        """Gradients reduced in one operation, MiB of fp32."""
        return self.bucket_mib * self.buckets_per_chunk
