"""How a model is spread over ranks: data × pipeline × tensor x·y·z, and which rank is where.

The tensor axes follow Algorithm 1 of the SC'24 AxoNN paper (arXiv 2502.08145). For a linear
layer O = I·W the rows of W (the contraction) are split over **y**, its columns over **x**, the
result is reduced over y going forward and over x going backward, and W itself is sharded over
**z** and gathered before use. Alternate layers swap x and y, so nothing is redistributed between
them. The batch is split over data and z.

The rules of what divides what stand once, in RULES, written so that they judge one decomposition
or, with arrays for axes, a million of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, product
from math import prod
from operator import mul
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from hpcdl.spec.entry import EntryModel
from hpcdl.spec.frozen import Frozen
from hpcdl.spec.model import Model

AXES = ("x", "y", "z", "data", "pipeline")
"""Innermost (fastest varying rank) first: the tensor axes talk most, so they sit closest together."""

Recompute = Literal["none", "selective", "full"]
Offload = Literal["none", "optimizer", "parameters"]
Order = Literal["data-pipeline", "pipeline-data"]


class Coordinate(NamedTuple):
    """Where a rank sits, in the order of AXES."""

    x: int
    y: int
    z: int
    data: int
    pipeline: int


class Decomposition(Frozen):
    """Degrees along every axis and how a batch runs through them."""

    data: int = Field(1, gt=0, description="replicas of the model, each with its share of the batch")
    pipeline: int = Field(1, gt=0, description="stages the layers are cut into")
    x: int = Field(1, gt=0, description="tensor axis over output features and attention heads")
    y: int = Field(1, gt=0, description="tensor axis over the hidden width")
    z: int = Field(1, gt=0, description="tensor axis that shards weights and splits the batch")
    context: int = Field(1, gt=0, description="parts each sequence is cut into (context parallelism)")
    expert: int = Field(1, gt=0, description="ranks of data over which the experts of a layer are spread")
    order: Order = Field(
        "data-pipeline",
        description="which of the two comes first outside the tensor axes: ranks next to "
        "each other along it sit closer",
    )
    sequence_parallel: bool = Field(
        default=False, description="norms and residuals cut along the sequence over x (Megatron-LM)"
    )
    microbatch: int = Field(1, gt=0, description="sequences a rank computes at a time")
    interleave: int = Field(1, gt=0, description="virtual stages a rank")
    in_flight: int | None = Field(
        None, gt=0, description="microbatches in a pipeline at once; null: enough to keep every stage busy"
    )
    defer_weights: bool = Field(
        default=False, description="weight gradients computed when a stage would otherwise wait for a message"
    )
    recompute: Recompute = Field("none", description="activations recomputed in the backward pass")
    recompute_every: int = Field(
        1, gt=0, description="layers between the activations that recompute: full keeps"
    )
    zero: Literal[0, 1, 2, 3] = Field(
        0, description="what is sharded over data: 1 optimizer state, 2 and gradients, 3 and weights (FSDP)"
    )
    offload: Offload = Field(
        "none",
        description="optimizer: its state and fp32 weights kept in CPU memory; parameters: weights and "
        "gradients between their uses as well",
    )
    offload_activations: bool = Field(
        default=False, description="what recompute: full keeps of a forward waits in CPU memory"
    )

    @model_validator(mode="after")
    def _every_of_full(self) -> Decomposition:
        if self.recompute_every > 1 and self.recompute != "full":
            raise ValueError(
                f"recompute_every {self.recompute_every} needs recompute: full, not {self.recompute}"
            )
        return self

    @model_validator(mode="after")
    def _activations_of_full(self) -> Decomposition:
        if self.offload_activations and self.recompute != "full":
            raise ValueError(f"offload_activations needs recompute: full, not {self.recompute}")
        return self

    @property
    def degrees(self) -> tuple[int, ...]:
        """The five degrees in the order of AXES."""
        return (self.x, self.y, self.z, self.data, self.pipeline)

    @property
    def ranks(self) -> int:
        """World size: the product of the five degrees, and of the parts of a sequence."""
        return prod(self.degrees) * self.context

    @property
    def batch_shards(self) -> int:
        """Parts a batch is cut into before microbatches: data × z."""
        return self.data * self.z

    def microbatches(self, global_batch: int) -> int:
        """Microbatches a pipeline runs in one step of ``global_batch`` sequences; the last may be smaller."""
        return -(-global_batch // (self.batch_shards * self.microbatch))

    def coordinate(self, rank: int) -> Coordinate:
        """Where ``rank`` sits.

        Raises:
            ValueError: there is no such rank.
        """
        position, rest = [], rank
        for degree in self.degrees:
            rest, index = divmod(rest, degree)
            position.append(index)
        if rest:  # 0 for every rank there is, -1 or 1 or more for others
            raise ValueError(f"rank {rank} does not exist among {self.ranks}")
        return Coordinate(*position)

    def rank(self, coordinate: Coordinate) -> int:
        """The rank that sits at ``coordinate``."""
        rank = 0
        for degree, index in zip(reversed(self.degrees), reversed(coordinate), strict=True):
            rank = rank * degree + index
        return rank

    def group(self, rank: int, *axes: str) -> tuple[int, ...]:
        """Ranks that differ from ``rank`` along ``axes`` only, in rank order."""
        offsets = _offsets(self.degrees, frozenset(axes))
        first = rank
        for axis, index, stride in zip(AXES, self.coordinate(rank), _strides(self.degrees), strict=True):
            if axis in axes:
                first -= index * stride
        return tuple(map(first.__add__, offsets)) if first else offsets

    def __str__(self) -> str:
        """The axes larger than 1: ``data 2 × pipeline 2``."""
        parts = [
            f"{axis} {degree}"
            for axis in ("data", "pipeline", "x", "y", "z", "context", "expert")
            if (degree := getattr(self, axis)) > 1
        ]
        return " × ".join(parts) or "one rank"


@cache
def _strides(degrees: tuple[int, ...]) -> tuple[int, ...]:
    """How far apart neighbours along each axis are, in ranks."""
    return tuple(accumulate((1, *degrees[:-1]), mul))


@cache
def _offsets(degrees: tuple[int, ...], axes: frozenset[str]) -> tuple[int, ...]:
    """The ranks of the group along ``axes`` that holds rank 0, in rank order."""
    steps = [
        range(0, degree * stride, stride) if axis in axes else (0,)
        for axis, degree, stride in zip(AXES, degrees, _strides(degrees), strict=True)
    ]
    return tuple(map(sum, product(*reversed(steps))))


@dataclass(frozen=True)
class Rule:
    """One condition on a decomposition; ``holds`` works on integers and on arrays of them alike."""

    name: str
    holds: Callable[[Any, Any, int], Any]
    message: str

    def explain(self, d: Decomposition, model: Model | EntryModel, global_batch: int) -> str:
        """The broken rule with its values."""
        return self.message.format(d=d, model=model, batch=global_batch)


def _shards_evenly(d: Any, model: Model) -> Any:
    """Whether every weight matrix, cut over x and y, cuts into z equal pieces."""
    shapes = [(m.rows, m.columns) for m in model.layer_matrices] + [(model.vocab, model.hidden)]
    verdict = True
    for rows, columns in shapes:
        verdict = verdict & (rows * columns // (d.x * d.y) % d.z == 0)
    return verdict


RULES: tuple[Rule, ...] = (
    Rule(
        "global_batch",
        lambda d, model, batch: batch % (d.data * d.z) == 0,
        "global_batch {batch} is not divisible by data {d.data} × z {d.z}",
    ),
    Rule(
        "microbatch",
        lambda d, model, batch: d.microbatch * d.data * d.z <= batch,
        "microbatch {d.microbatch} is more than a rank's share of global_batch {batch} over data {d.data} × "
        "z {d.z}",
    ),
    Rule(
        "layers",
        lambda d, model, batch: d.pipeline * d.interleave <= model.layers,
        "pipeline {d.pipeline} × interleave {d.interleave} needs more layers than the model's {model.layers}",
    ),
    Rule(
        "interleave",
        lambda d, model, batch: (d.interleave == 1) | (d.pipeline > 1),
        "interleave {d.interleave} cuts a pipeline's stages further, but pipeline is {d.pipeline}",
    ),
    Rule(
        "kv_heads",
        lambda d, model, batch: model.kv_heads % d.x == 0,
        "kv_heads {model.kv_heads} is not divisible by x {d.x}",
    ),
    Rule("ffn", lambda d, model, batch: model.ffn % d.x == 0, "ffn {model.ffn} is not divisible by x {d.x}"),
    Rule(
        "vocab",
        lambda d, model, batch: model.vocab % d.x == 0,
        "vocab {model.vocab} is not divisible by x {d.x}",
    ),
    Rule(
        "hidden",
        lambda d, model, batch: model.hidden % d.y == 0,
        "hidden {model.hidden} is not divisible by y {d.y}",
    ),
    Rule(
        "z shards",
        lambda d, model, batch: _shards_evenly(d, model),
        "z {d.z} does not cut every weight matrix (already cut over x {d.x} and y {d.y}) into equal shards",
    ),
    Rule(
        "recompute_every",
        lambda d, model, batch: d.recompute_every <= model.layers,
        "recompute_every {d.recompute_every} is more than the model's {model.layers} layers",
    ),
    Rule(
        "context",
        lambda d, model, batch: model.sequence % d.context == 0,
        "sequence {model.sequence} is not divisible by context {d.context}",
    ),
    Rule(
        "expert",
        lambda d, model, batch: (model.experts % d.expert == 0) & (d.data % d.expert == 0),
        "expert {d.expert} must divide the model's experts {model.experts} and data {d.data}",
    ),
    Rule(
        "sequence_parallel",
        lambda d, model, batch: (
            (d.y == 1) & (model.sequence % (d.x * d.context) == 0) | (d.sequence_parallel == 0)
        ),
        "sequence_parallel cuts sequence {model.sequence} over x {d.x} × context {d.context}, which must "
        "divide it, and knows no y (here {d.y})",
    ),
)
"""What every decomposition of a model must satisfy, whatever engine runs it."""

_ANY_MODEL: tuple[Rule, ...] = (
    Rule(
        "one sequence",
        lambda d, model, batch: d.context == 1,
        "context {d.context}: the bundled engine does not cut sequences; its z splits the batch, its x heads",
    ),
    Rule(
        "whole experts",
        lambda d, model, batch: d.expert == 1,
        "expert {d.expert}: the bundled engine has no expert parallelism",
    ),
    Rule(
        "zero",
        lambda d, model, batch: d.zero <= 1,
        "zero {d.zero}: the bundled engine shards optimizer state over data (1); to shard weights and "
        "gradients as well, use z",
    ),
    Rule(
        "whole norms",
        lambda d, model, batch: d.sequence_parallel == 0,
        "sequence_parallel: the bundled engine does not cut norms along the sequence; y cuts them by width",
    ),
    Rule(
        "order",
        lambda d, model, batch: d.order == "data-pipeline",
        "order {d.order}: the bundled engine numbers ranks along data before pipeline",
    ),
)

ENGINE_RULES: tuple[Rule, ...] = (
    *_ANY_MODEL,
    Rule(
        "dense model",
        lambda d, model, batch: model.experts == 1,
        "experts {model.experts}: the bundled engine has no mixture of experts",
    ),
)
"""What the bundled engine cannot run, and the planner therefore does not propose for it."""


ENTRY_RULES: tuple[Rule, ...] = (
    *(rule for rule in RULES if rule.name in ("global_batch", "microbatch", "interleave")),
    *_ANY_MODEL,
    Rule(
        "tensor axes",
        lambda d, model, batch: (d.x * d.y * d.z) == 1,
        "x {d.x} × y {d.y} × z {d.z}: a model of your own is spread over data and pipeline only",
    ),
    Rule(
        "recompute",
        lambda d, model, batch: d.recompute == "none",
        "recompute {d.recompute}: a model of your own recomputes what its modules checkpoint themselves",
    ),
    Rule(
        "defer_weights",
        lambda d, model, batch: not d.defer_weights,
        "defer_weights: the backward of a model of your own is not split into two",
    ),
    Rule(
        "offload",
        lambda d, model, batch: d.offload != "parameters",
        "offload {d.offload}: nothing is known of when layers of your own use their weights; optimizer works",
    ),
    Rule(
        "offload_activations",
        lambda d, model, batch: not d.offload_activations,
        "offload_activations: what a model of your own checkpoints is kept by its modules",
    ),
)
"""The same for a model of the user's own, whose shape is not known."""


def violations(
    d: Decomposition,
    model: Model | EntryModel,
    global_batch: int,
    engine_rules: tuple[Rule, ...] = ENGINE_RULES,
) -> dict[str, str]:
    """Every broken rule by its name, explained with its values; empty if ``d`` can run.

    Args:
        d: what is judged.
        model: what is trained.
        global_batch: sequences an optimizer step.
        engine_rules: what the engine that is to run it demands beyond RULES; by default the bundled one.
    """
    rules = ENTRY_RULES if isinstance(model, EntryModel) else (*RULES, *engine_rules)
    return {
        rule.name: rule.explain(d, model, global_batch)
        for rule in rules
        if not rule.holds(d, model, global_batch)
    }
