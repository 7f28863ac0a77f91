"""The shape of a transformer, and the exact parameter and FLOP counts that follow from it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, field_validator, model_validator

from hpcdl.spec.frozen import Frozen

Family = Literal["gpt", "llama"]

# Published shapes. GPT: Brown et al. 2020, table 2.1, and Radford et al. 2019; Llama 2: Touvron et al. 2023;
# Llama 3: Grattafiori et al. 2024, table 3, with the vocabulary of the released weights.
PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": dict(family="gpt", layers=12, hidden=768, heads=12, vocab=50257, sequence=1024),
    "gpt3-1.3b": dict(family="gpt", layers=24, hidden=2048, heads=16, vocab=50257, sequence=2048),
    "gpt3-6.7b": dict(family="gpt", layers=32, hidden=4096, heads=32, vocab=50257, sequence=2048),
    "gpt3-13b": dict(family="gpt", layers=40, hidden=5120, heads=40, vocab=50257, sequence=2048),
    "gpt3-175b": dict(family="gpt", layers=96, hidden=12288, heads=96, vocab=50257, sequence=2048),
    "llama2-7b": dict(
        family="llama", layers=32, hidden=4096, heads=32, ffn=11008, vocab=32000, sequence=4096,
    ),
    "llama2-70b": dict(
        family="llama", layers=80, hidden=8192, heads=64, kv_heads=8, ffn=28672, vocab=32000, sequence=4096
    ),
    "llama3-8b": dict(
        family="llama", layers=32, hidden=4096, heads=32, kv_heads=8, ffn=14336, vocab=128256, sequence=8192,
        rope_theta=500000.0,
    ),
    "llama3-70b": dict(
        family="llama", layers=80, hidden=8192, heads=64, kv_heads=8, ffn=28672, vocab=128256,
        sequence=8192, rope_theta=500000.0,
    ),
    "llama3-405b": dict(
        family="llama", layers=126, hidden=16384, heads=128, kv_heads=8, ffn=53248, vocab=128256,
        sequence=8192, rope_theta=500000.0,
    ),
}  # fmt: skip


class Matrix(NamedTuple):
    """One weight matrix, the full one, as ``torch.nn.Linear`` stores it: rows are outputs."""

    name: str
    rows: int
    columns: int


def _optional_where_filled_in(schema: dict[str, Any]) -> None:
    """For editors: a preset gives everything, and without one some keys follow from others."""
    schema.pop("required")
    schema["anyOf"] = [
        {"required": ["preset"]},
        {"required": ["layers", "hidden", "heads", "vocab", "sequence"]},
    ]


class Model(Frozen):
    """A decoder-only transformer.

    ``gpt``: learned positions, LayerNorm, GELU, biases, the LM head tied to the embedding.
    ``llama``: rotary positions, RMSNorm, SwiGLU, no biases, an LM head of its own.
    """

    model_config = ConfigDict(json_schema_extra=_optional_where_filled_in)

    preset: str | None = Field(None, description="start from a published shape; other keys override it")
    family: Family = "gpt"
    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0, description="fewer than heads: grouped-query attention")
    ffn: int = Field(gt=0, description="inner width of the MLP")
    vocab: int = Field(gt=1)
    sequence: int = Field(gt=0, description="tokens a sequence")
    tied: bool = Field(description="whether the LM head shares the embedding's weight")
    experts: int = Field(1, gt=0, description="MLPs a layer, of which a router picks for each token")
    active_experts: int = Field(1, gt=0, description="MLPs that each token goes through")
    rope_theta: float = Field(10000.0, gt=0)
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of elements dropped in training, at GPT-2's three kinds of places"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        """Fill in what follows from the preset, the family and the width."""
        if not isinstance(given, dict):
            return given
        preset = given.get("preset")
        merged = {**PRESETS.get(preset, {}), **given} if isinstance(preset, str) else dict(given)
        gpt = merged.get("family", "gpt") == "gpt"
        merged.setdefault("tied", gpt)
        if isinstance(merged.get("heads"), int):
            merged.setdefault("kv_heads", merged["heads"])
        hidden = merged.get("hidden")
        if isinstance(hidden, int):
            # Llama's rule: two thirds of 4h, rounded up to a multiple of 256.
            merged.setdefault("ffn", 4 * hidden if gpt else -(-8 * hidden // 3 // 256) * 256)
        return merged

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"there is no preset {preset!r}; known presets: {', '.join(PRESETS)}")
        return preset

    @model_validator(mode="after")
    def _divides(self) -> Model:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not divisible by heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        if self.active_experts > self.experts:
            raise ValueError(f"active_experts {self.active_experts} is more than experts {self.experts}")
        if self.family == "llama" and self.head_size % 2:
            raise ValueError(
                f"rotary positions turn pairs, so hidden {self.hidden} / heads {self.heads} must be even, "
                f"not {self.head_size}"
            )
        return self

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def layer_matrices(self) -> tuple[Matrix, ...]:
        """The weight matrices of one layer, in execution order; the last two are one expert's."""
        h, f = self.hidden, self.ffn
        qkv = (self.heads + 2 * self.kv_heads) * self.head_size
        up = f if self.family == "gpt" else 2 * f  # SwiGLU: gate and up together
        return (
            Matrix("attention.qkv", qkv, h),
            Matrix("attention.out", h, h),
            Matrix("mlp.up", up, h),
            Matrix("mlp.down", h, f),
        )

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: matrices, biases, the two norms and the router."""
        biased = self.family == "gpt"
        sizes = [matrix.rows * (matrix.columns + biased) for matrix in self.layer_matrices]
        norms = self.hidden * (4 if biased else 2)
        return sum(sizes[:2]) + self.experts * sum(sizes[2:]) + self.router_parameters + norms

    @property
    def router_parameters(self) -> int:
        """Parameters that choose experts in one layer; 0 where there is one."""
        return self.experts * self.hidden if self.experts > 1 else 0

    @property
    def embedding_parameters(self) -> int:
        """Parameters before the first layer: token and, for ``gpt``, position embedding."""
        positions = self.sequence * self.hidden if self.family == "gpt" else 0
        return self.vocab * self.hidden + positions

    @property
    def head_parameters(self) -> int:
        """Parameters after the last layer: final norm and, unless tied, the LM head."""
        norm = self.hidden * (2 if self.family == "gpt" else 1)
        return norm + (0 if self.tied else self.vocab * self.hidden)

    @property
    def parameters(self) -> int:
        """All parameters, a tied weight counted once."""
        return self.embedding_parameters + self.layers * self.layer_parameters + self.head_parameters

    @property
    def layer_forward_flops(self) -> int:
        """FLOPs of one layer's forward for one sequence: matmuls and the whole attention score square."""
        s = self.sequence
        matmuls = [2 * s * matrix.rows * matrix.columns for matrix in self.layer_matrices]
        routed = self.active_experts * sum(matmuls[2:]) + 2 * s * self.router_parameters
        return sum(matmuls[:2]) + routed + 4 * s * s * self.hidden

    @property
    def head_forward_flops(self) -> int:
        """FLOPs of the LM head's forward for one sequence."""
        return 2 * self.sequence * self.hidden * self.vocab

    @property
    def forward_flops(self) -> int:
        """FLOPs of the whole forward for one sequence."""
        return self.layers * self.layer_forward_flops + self.head_forward_flops

    @property
    def train_flops(self) -> int:
        """Model FLOPs of forward and backward for one sequence (backward is twice the forward).

        For the classic block this is 72·L·s·h²·(1 + s/(6h) + V/(12Lh)), Narayanan et al. 2021;
        recomputation is not counted, so dividing by time and peak gives MFU, not HFU.
        """
        return 3 * self.forward_flops

    @property
    def recomputed_flops(self) -> dict[str, int]:
        """FLOPs that each way of recomputing adds to ``train_flops``; together they give HFU.

        ``full`` computes every layer forward once more, but not the head: 96·L·s·h²·(1 + s/(6h) + V/(16Lh))
        in all, Narayanan et al. 2021, section 5.1. ``selective`` computes the scores and their product with
        the values once more (Korthikanti et al. 2022, section 5): 4·s²·h a layer.
        """
        return {
            "none": 0,
            "selective": self.layers * 4 * self.sequence**2 * self.hidden,
            "full": self.layers * self.layer_forward_flops,
        }
