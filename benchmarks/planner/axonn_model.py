"""The grids that AxoNN's own cost model chose, beside those that the planner finds for the same runs.

AxoNN ranks grids x × y × z × data by communication alone (SC'24, arXiv 2502.08145, section V-B), every
collective a ring without start-up and nothing hidden. Its program (Megatron-AxoNN, branch
gordon-bell-perlmutter, examples/comm_model.py) counts, beside equations 1 to 6, the weights' gathers once
more for backward, the sum of an output once more for recomputation and gradients over data in fp32. It also
gives mlp.down, 4h → h, the widths of mlp.up: its output is summed 4h wide and its input's gradient h wide.
Bandwidths are the planner's, from the description of the machine, by equation 7.

usage: python benchmarks/planner/axonn_model.py
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from machines import MACHINES

from hpcdl.planner import memory
from hpcdl.planner.case import Case
from hpcdl.planner.choices import Space
from hpcdl.planner.divisors import factorisations
from hpcdl.planner.engines import find_engine
from hpcdl.planner.estimate import step_tree
from hpcdl.planner.fabric import Fabric
from hpcdl.planner.space import FULL, Candidates, Floats
from hpcdl.sites.profile import default_profile
from hpcdl.spec.job import Layout
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training

BATCH, SEQUENCE = 8192, 2048  # 16.8 M tokens, section VI

# Table II: layers, hidden, heads.
SHAPES = {
    "5B": (24, 4096, 32),
    "10B": (32, 5120, 40),
    "20B": (32, 7168, 56),
    "40B": (38, 9216, 72),
    "60B": (56, 9216, 72),
    "80B": (42, 12288, 96),
    "160B": (84, 12288, 96),
    "320B": (96, 16384, 128),
    "640B": (192, 16384, 128),
}

RUNS = (
    *(
        ("Perlmutter", model, gpus)
        for model, gpus in (("5B", 512), ("10B", 1024), ("20B", 2048), ("40B", 4096))
    ),
    *(
        ("Frontier", model, gpus)
        for model, gpus in (("5B", 512), ("10B", 1024), ("20B", 2048), ("40B", 4096))
    ),
    *(("Frontier", model, gpus) for model, gpus in (("80B", 8192), ("160B", 16384), ("320B", 32768))),
)
"""Weak scaling, table III."""

# Tensor parallelism that its launcher takes for the least: 4 for 5B, 8 for 10B, 128 for 160B.
_PARAMETERS_A_RANK = 1.25e9


@dataclass(frozen=True)
class Grid:
    """Degrees, as AxoNN writes them."""

    x: int
    y: int
    z: int
    data: int

    def __str__(self) -> str:
        return f"{self.x}×{self.y}×{self.z}" + f" × data {self.data}" * (self.data > 1)


def case_of(machine: str, name: str, gpus: int, batch: int = BATCH) -> Case:
    """A run of AxoNN's on so many of a machine's devices."""
    layers, hidden, heads = SHAPES[name]
    vocab = 51200 if machine == "Perlmutter" else 32000  # Megatron-LM's model code there, LitGPT's elsewhere
    node = MACHINES[machine].node
    return Case(
        model=Model(layers=layers, hidden=hidden, heads=heads, vocab=vocab, sequence=SEQUENCE),
        training=Training(global_batch=batch),
        node=node,
        network=MACHINES[machine].network,
        layout=Layout(nodes=gpus // node.devices, ranks_per_node=node.devices, cores_per_rank=8),
        profile=default_profile(node.device),
        engine=find_engine("axonn"),
    )


def chosen(case: Case, *, as_run: bool = True) -> list[Grid]:
    """Grids of powers of two by AxoNN's model, the best first; not ``as_run``: by its equations alone."""
    ranks = case.layout.ranks
    degrees = 2 ** _factorisations_of_two(ranks)
    x, y, z, data = degrees.T
    small = case.model.parameters / (x * y * z) <= _PARAMETERS_A_RANK
    lawful = (case.training.global_batch % (data * z) == 0) & (case.model.heads % x == 0) & small
    c = Candidates.grids(**dict(zip(("x", "y", "z", "data"), degrees[lawful].T, strict=True)))
    seconds = communication(case, c, as_run=as_run)
    return [_grid(c, place) for place in np.argsort(seconds, kind="stable")]


def _factorisations_of_two(ranks: int) -> np.ndarray:
    """Exponents of two for x, y, z and data that make ``ranks``."""
    exponents = np.log2(factorisations(ranks, 4))
    return exponents[(exponents == np.round(exponents)).all(axis=1)].astype(np.int64)


def communication(case: Case, c: Candidates, *, as_run: bool) -> Floats:
    """Seconds of a step's communication by AxoNN's model."""
    fabric = Fabric(case, c)
    tokens = case.training.global_batch * case.model.sequence / (c.data * c.z)
    total = np.zeros(len(c))
    for place, matrix in enumerate(case.model.layer_matrices):
        summed, back = ("x", "y") if place % 2 else ("y", "x")
        outputs, inputs = matrix.rows, matrix.columns
        if as_run and outputs < inputs:
            outputs, inputs = inputs, outputs
        weight = matrix.rows * matrix.columns / (c.x * c.y) * case.element_bytes
        total += 3 * _ring(fabric, weight, "z")
        total += 4 * _ring(fabric, weight / c.z, "data")
        total += 4 * _ring(fabric, tokens * outputs / fabric.size(back) * case.element_bytes, summed)
        total += 2 * _ring(fabric, tokens * inputs / fabric.size(summed) * case.element_bytes, back)
    return case.model.layers * total


def _ring(fabric: Fabric, count_bytes: Floats, axis: str) -> Floats:
    size = fabric.size(axis)
    return (size - 1) / size * count_bytes / fabric.bandwidth(axis)


def found(case: Case) -> tuple[Grid, float]:
    """The grid that the planner finds for AxoNN, among all divisors, and its seconds a step."""
    space = Space(case.layout.ranks, case.model, case.training.global_batch, case.engine).nodes
    plain = (space.zero == 0) & ~space.sequence_parallel & (space.recomputed == FULL)
    grids = space.take(plain & (space.pipeline == 1) & (space.context == 1))
    fitting = grids.take(memory.fits(case, grids))
    seconds = step_tree(case, fitting, drive=False).value
    best = int(np.argmin(seconds))
    return _grid(fitting, best), float(seconds[best])


def _grid(c: Candidates, place: int) -> Grid:
    return Grid(*(int(getattr(c, axis)[place]) for axis in ("x", "y", "z", "data")))


def main() -> None:
    """One line a run."""
    print(f"{'machine':<11} {'model':>5} {'ranks':>6}  {'AxoNN as run':<20} {'its equations':<20} planner")
    for machine, name, gpus in RUNS:
        case = case_of(machine, name, gpus)
        as_run, by_equations = (chosen(case, as_run=quirk)[0] for quirk in (True, False))
        grid, seconds = found(case)
        grids = f"{as_run!s:<20} {by_equations!s:<20} {grid!s:<20}"
        print(f"{machine:<11} {name:>5} {gpus:>6}  {grids} {seconds:.2f} s")


if __name__ == "__main__":
    main()
