"""How a model is trained: batch, steps, precision, optimizer, data and checkpoints."""

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


class Training(Frozen):
    """One training run, whatever the decomposition."""

    global_batch: int = Field(32, gt=0, description="sequences an optimizer step")
    steps: int = Field(100, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    optimizer: Optimizer = Optimizer()
    seed: int = Field(0, ge=0)
    bucket_mib: float = Field(25.0, gt=0, description="size of one bucket of the gradient reduction, MiB")

    @model_validator(mode="after")
    def _runnable(self) -> Training:
        if self.precision == "fp16":
            raise ValueError(
                "precision fp16 needs loss scaling, which the bundled engine does not have yet; use bf16"
            )
        return self


class Data(Frozen):
    """What is trained on."""

    source: Literal["text", "stdlib"] = Field(
        "text",
        description="text: the files below path; stdlib: the Python standard library's own source files",
    )
    path: str | None = Field(None, description="a file or a folder; relative to the experiment file")
    pattern: str = Field("*", description="which files of a folder, as a glob applied at every depth")
    tokenizer: Literal["bytes"] = "bytes"
    max_bytes: int = Field(256 * 1024**2, gt=0, description="at most this much text is read")

    @model_validator(mode="after")
    def _path_where_needed(self) -> Data:
        if self.source == "text" and not self.path:
            raise ValueError("source text needs a path: the file or folder to train on")
        if self.source == "stdlib" and self.path:
            raise ValueError(
                f"source stdlib takes no path, but path is {self.path!r}; use source: text to read a path"
            )
        return self


class Checkpoint(Frozen):
    """When the state of training is saved."""

    every: int = Field(0, ge=0, description="steps between checkpoints; 0 saves none")
    keep: int = Field(2, gt=0, description="how many of the newest to keep")
