"""Calculon's search space, judged whole by our cost model.

Calculon (Isaev et al., SC'23; github.com/calculon-ai/calculon, llm-optimal-execution) tries every combination
of tensor, pipeline and data parallelism, chunks, recomputation, sharded optimizer, kind of tensor
communication, gathers done again, overlap of both kinds of communication, three kinds of offload, microbatch,
and a link tier for each kind of parallelism. Here the same combinations are listed, one row each, and every
row is judged: by memory, by the least time of its step, and the leaders by the clock. docs/planner/search.md
says what of theirs is which of ours. Rows that are the same to us are computed once and looked up.

usage: python benchmarks/planner/calculon_space.py
"""

import time
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from machines import MACHINES

from hpcdl.planner import memory
from hpcdl.planner.case import Case
from hpcdl.planner.divisors import divisors
from hpcdl.planner.engines import find_engine
from hpcdl.planner.estimate import least_step
from hpcdl.planner.leaders import Leaders
from hpcdl.planner.space import FULL, ORDERS, SELECTIVE, Candidates
from hpcdl.sites.profile import default_profile
from hpcdl.spec.job import Layout, Overlap
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training

_TIERS = 2  # links of Calculon's a100_80g.json: NVLink and InfiniBand
# Kinds of tensor communication: all-reduce; the same with messages cut; reduce-scatter and all-gather.
_RS_AG = 2
_COLUMNS = (
    "interleave", "microbatch", "recomputed", "zero", "kind", "again", "beside_data", "beside_tensor",
    "weights", "activations", "optimizer", "tensor_tier", "pipeline_tier", "data_tier",
)  # fmt: skip
_RECOMPUTES = (FULL, SELECTIVE, 0)


@dataclass(frozen=True)
class Request:
    """A model on so many GPUs, and how many configurations Calculon counts for it."""

    name: str
    model: Model
    gpus: int
    batch: int
    counted: int


REQUESTS = (
    Request(
        "22B", Model(layers=48, hidden=6144, heads=64, vocab=51200, sequence=2048), 8, 4, counted=193_496
    ),
    Request("175B", Model(preset="gpt3-175b", vocab=51200), 64, 64, counted=3_232_128),
)


def rows(request: Request, tensor: int, pipeline: int, data: int) -> dict[str, np.ndarray]:
    """Every configuration of one grid, by _COLUMNS."""
    model, share = request.model, request.batch // data
    several = {"tensor": tensor > 1, "pipeline": pipeline > 1, "data": data > 1}
    tiers = {name: range(_TIERS if there else 1) for name, there in several.items()}
    flags = {True: (0, 1), False: (0,)}
    choices = (
        divisors(model.layers // pipeline) if pipeline > 1 else [1],
        [size for size in divisors(share) if size * model.sequence % tensor == 0],
        _RECOMPUTES, flags[data > 1], range(3), (0, 1), flags[data > 1],
        range(3) if tensor > 1 else (0,), (0, 1), (0, 1), (0, 1),
        tiers["tensor"], tiers["pipeline"], tiers["data"],
    )  # fmt: skip
    grid = np.meshgrid(*(np.array(list(values), dtype=np.int16) for values in choices), indexing="ij")
    found = dict(zip(_COLUMNS, (column.ravel() for column in grid), strict=True))
    gathers_again = (found["kind"] == _RS_AG) & (found["recomputed"] != FULL)
    real = (found["again"] <= gathers_again) & (found["activations"] <= (found["recomputed"] != FULL))
    return {name: column[real] for name, column in found.items()}


def grids(request: Request) -> list[tuple[int, int, int]]:
    """Tensor, pipeline and data of every grid."""
    model, gpus = request.model, request.gpus
    return [
        (tensor, pipeline, gpus // tensor // pipeline)
        for tensor, pipeline in product(divisors(gpus), repeat=2)
        if gpus % (tensor * pipeline) == 0
        and model.hidden % tensor == 0
        and model.heads % tensor == 0
        and model.layers % pipeline == 0
        and gpus // tensor // pipeline <= request.batch
    ]


def as_ours(found: dict[str, np.ndarray], tensor: int, pipeline: int, data: int) -> np.ndarray:
    """What each row is to us: columns of a candidate and whether two overlaps are on, shape (rows, 11)."""
    one = np.ones(len(found["zero"]), dtype=np.int64)
    inside = (found["pipeline_tier"] < found["data_tier"]).astype(np.int64)  # the nearer one has faster links
    return np.stack(
        [
            tensor * one, pipeline * one, data * one, found["interleave"], found["microbatch"],
            found["recomputed"], found["zero"], (found["kind"] == _RS_AG) & (tensor > 1),
            np.where(found["weights"], 2, found["optimizer"]),
            inside * ORDERS.index("pipeline-data"),
            2 * found["beside_data"] + (found["beside_tensor"] > 0),
        ],
        axis=1,
    ).astype(np.int64)  # fmt: skip


def candidates(ours: np.ndarray) -> Candidates:
    """The same as candidates, without the last column."""
    names = (
        "x", "pipeline", "data", "interleave", "microbatch", "recomputed", "zero", "sequence_parallel",
        "offloaded", "ordered",
    )  # fmt: skip
    return Candidates.grids(**dict(zip(names, ours.T, strict=False)))


def case_of(request: Request) -> Case:
    """On A100s with 80 GB, eight a node."""
    machine, nodes = MACHINES["Selene"], max(1, request.gpus // 8)
    return Case(
        request.model,
        Training(global_batch=request.batch),
        machine.node,
        machine.network,
        Layout(nodes=nodes, ranks_per_node=request.gpus // nodes, cores_per_rank=8),
        default_profile(machine.node.device),
        engine=find_engine("any"),
    )


def search(request: Request) -> tuple[int, int, int, Candidates, float]:
    """Rows, different ones, how many fit, the best, and its seconds."""
    plain, count, different, fitting = case_of(request), 0, 0, 0
    leaders = {code: Leaders(_with(plain, code), 1, 1.25) for code in range(4)}
    for grid in grids(request):
        ours = as_ours(rows(request, *grid), *grid)
        unique, inverse = _unique(ours)
        count, different = count + len(ours), different + len(unique)
        fits = np.zeros(len(unique), dtype=np.bool_)
        for code, leader in leaders.items():
            places = np.flatnonzero(unique[:, -1] == code)
            if len(places):
                some = candidates(unique[places])
                fits[places] = memory.fits(leader.case, some)
                fitting_ones = some.take(fits[places])
                leader.add(fitting_ones, least_step(leader.case, fitting_ones))
        fitting += int(fits[inverse].sum())
    for leader in leaders.values():
        leader.settle()
    best = min(leaders.values(), key=lambda leader: leader.seconds[0])
    return count, different, fitting, best.candidates, float(best.seconds[0])


def _with(case: Case, code: int) -> Case:
    on = Overlap(gradient_reduction=code >= 2, input_gradient=code % 2 == 1, optimizer=code >= 2)
    return replace(case, overlap=on)


def _unique(ours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different rows, and which of them each row is."""
    keys = np.zeros(len(ours), dtype=np.int64)
    for column in ours.T:
        keys = keys * (int(column.max(initial=0)) + 1) + column
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return ours[first], inverse


def main() -> None:
    """Judge both spaces and print a row each."""
    for request in REQUESTS:
        started, used = time.perf_counter(), time.process_time()
        count, different, fitting, best, seconds = search(request)
        wall, cpu = time.perf_counter() - started, time.process_time() - used
        d = best.decomposition(0)
        print(
            f"{request.name} on {request.gpus}: {count} configurations (Calculon counts {request.counted}), "
            f"{different} different to us, {fitting} fit; {wall:.2f} s, {cpu:.2f} CPU s"
        )
        print(f"  best: {d}, microbatch {d.microbatch}, interleave {d.interleave}, {seconds:.2f} s a step")


if __name__ == "__main__":
    main()
