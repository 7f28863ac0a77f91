"""The decompositions that a row may have run with, in the planner's words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from rows import NotScoredError, Row, said

from hpcdl.planner.choices import Space, judge
from hpcdl.planner.divisors import divisors
from hpcdl.planner.engines import find_engine
from hpcdl.planner.space import FULL, Candidates
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model

_LARGEST_MICROBATCH = 16
_RECOMPUTES = ("none", "selective", "full")


class _Degrees(NamedTuple):
    x: int
    z: int
    data: int
    pipeline: int
    context: int
    zero: int


def _degrees(row: Row, engine: str) -> _Degrees:
    """Ranks along each axis.

    Raises:
        NotScoredError: the source does not print them, or they do not make the row's GPUs.
    """
    ranks, zero = said(row.gpus, "number of GPUs"), row.zero
    if zero is None:
        zero = 1 if engine == "megatron-deepspeed" else 0  # Megatron-DeepSpeed is run with ZeRO-1
    if row.tensor is None or row.pipeline is None:
        raise NotScoredError("degrees not stated")
    if (row.expert or 1) > 1:
        raise NotScoredError(
            f"expert parallelism {row.expert}: the row does not say how many experts there are"
        )
    fixed = row.tensor * row.pipeline * (row.context or 1)
    if ranks % fixed:
        raise NotScoredError(f"degrees {fixed} do not divide {ranks} GPUs")
    data, shards = ranks // fixed, row.data or ranks // fixed
    if data % shards or (shards != data and zero != 3):
        raise NotScoredError(f"degrees make {fixed * shards} ranks, but the row has {ranks} GPUs")
    if zero == 3 and "HSDP" in row.notes and shards == data and engine != "axonn":
        shards = min(data, row.gpus_per_node or data)
    hybrid = shards != data or (zero == 3 and engine == "axonn")
    z, data, zero = (shards, data // shards, 0) if hybrid else (1, data, zero)
    return _Degrees(row.tensor, z, data, row.pipeline, row.context or 1, zero)


def choices_of(row: Row, model: Model, engine: str, notes: list[str]) -> Candidates:
    """Every decomposition that the row leaves open; what it leaves open is added to ``notes``.

    Raises:
        NotScoredError: it does not say enough, or ran what the planner has no words for.
    """
    if engine == "axonn" and row.tensor is None and "2502.08145" in row.source:
        return _grids(row, model, notes)
    return Candidates.of(*_written(row, model, engine, notes))


def _grids(row: Row, model: Model, notes: list[str]) -> Candidates:
    """All tensor grids: AxoNN (SC'24) does not print the one that its cost model chose for a run."""
    space = Space(said(row.gpus, "number of GPUs"), model, said(row.batch, "batch"), find_engine("axonn"))
    grids = space.grids.take(space.grids.pipeline == 1).having(recomputed=FULL)
    sizes = [
        grids.having(microbatch=size) for size in divisors(space.global_batch) if size <= _LARGEST_MICROBATCH
    ]
    grids = Candidates.joined(sizes)
    grids = grids.take(judge(grids, model, space.global_batch, space.engine)[0])
    notes.append(f"grid not printed: the best of {len(grids)}")
    return grids


def _written(row: Row, model: Model, engine: str, notes: list[str]) -> Iterator[Decomposition]:
    degrees = _degrees(row, engine)
    share = said(row.batch, "batch") / (degrees.data * degrees.z)
    if share != int(share) or not share:
        raise NotScoredError(f"batch {row.batch} is not divisible by data {degrees.data * degrees.z}")
    microbatches = _open(
        "microbatch", _microbatch(row, engine, int(share)), _smaller(divisors(int(share))), notes
    )
    chunks = _open("interleaving", _chunks(row, model, degrees), _chunk_counts(model, degrees), notes)
    recomputes = _open("recomputation", _recompute(row), _RECOMPUTES, notes)
    for microbatch, interleave, recompute in product(microbatches, chunks, recomputes):
        yield Decomposition.model_validate(
            {
                **degrees._asdict(),
                "microbatch": microbatch,
                "recompute": recompute,
                "sequence_parallel": _sequence_parallel(row, engine) and degrees.x > 1,
                "offload": _offload(row),
                **_schedule(row, degrees.pipeline, interleave, int(share) // microbatch),
            }
        )


def _sequence_parallel(row: Row, engine: str) -> bool:
    """What the row says; torchtitan has no tensor parallelism without."""
    return engine.startswith("torchtitan") if row.sequence_parallel is None else row.sequence_parallel


def _open(name: str, stated: Any, possible: Any, notes: list[str]) -> tuple[Any, ...]:
    """What the row says, or all that it may have been."""
    if stated is not None:
        return (stated,)
    if len(possible) > 1:
        notes.append(f"{name} not stated: the best of {', '.join(map(str, possible))}")
    return tuple(possible)


def _microbatch(row: Row, engine: str, share: int) -> int | None:
    """What the row says; torchtitan by default cuts a rank's batch into one part a stage of the pipeline."""
    stages = row.pipeline or 1
    if row.microbatch is None and engine.startswith("torchtitan") and stages > 1 and share % stages == 0:
        return share // stages
    return row.microbatch


def _smaller(counts: list[int]) -> list[int]:
    return [count for count in counts if count <= _LARGEST_MICROBATCH]


def _chunks(row: Row, model: Model, degrees: _Degrees) -> int | None:
    if degrees.pipeline == 1:
        return 1
    if row.chunks != 0:
        return row.chunks
    # One layer a chunk; where that does not come out even, embedding and head are two of them.
    whole, rest = divmod(model.layers + 2, degrees.pipeline)
    return model.layers // degrees.pipeline if rest else whole


def _chunk_counts(model: Model, degrees: _Degrees) -> list[int]:
    return divisors(model.layers // degrees.pipeline) if model.layers % degrees.pipeline == 0 else [1]


def _schedule(row: Row, stages: int, chunks: int, microbatches: int) -> dict[str, Any]:
    """Microbatches in flight by schedule: 1F1B's warm-up fills every stage once, interleaved ones more.

    Interleaved: the first rank runs 2(p-1) + (v-1)p chunks ahead, which is p + (p-1)/v microbatches
    (Narayanan et al. 2021, section 2.2.2). ZB-2p holds twice what 1F1B does, ZB-1p and ZB-H1 the same
    (Qi et al., arXiv 2401.10241).
    """
    name = row.schedule.lower()
    if stages == 1:
        return {}
    if re.match(r"zb-(2p|h2)", name):
        return {"defer_weights": True, "in_flight": 2 * stages}
    if re.match(r"zb-(1p|h1)", name):
        return {"defer_weights": True, "in_flight": stages}
    if re.match(r"gpipe|afab", name):
        return {"in_flight": microbatches}
    if name and not re.match(r"1f1b|interleaved|message-driven", name):
        raise NotScoredError(f"schedule {row.schedule} is not one of the planner's")
    return {"interleave": chunks, "in_flight": stages + -(-(stages - 1) // chunks) * (chunks > 1)}


def _recompute(row: Row) -> str | None:
    """The planner's word for what the row recomputes; None where it does not say."""
    words = row.recompute.lower()
    if not words:
        return None
    if "every" not in words:
        for known in _RECOMPUTES:
            if words.startswith(known):
                return known
    raise NotScoredError(f"recompute {row.recompute} is not one of the planner's")


def _offload(row: Row) -> str:
    if row.offload in ("", "none", "no"):
        return "none"
    if row.offload.startswith("optimizer state"):
        return "optimizer"
    raise NotScoredError(f"offload {row.offload} is not one of the planner's")
