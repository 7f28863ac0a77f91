"""Fits what a profile says of single kernels to tables of measured ones, and prints errors.

Products: how far the formula is off those of ``hpcdl/sites/products.csv``, by end, and the share of the peak
that makes its median right. Flash attention: the two efficiencies of each device in ``calibration/``. V100:
the profile's numbers that make whole layers of Aceso's profile right (five GPT models, four microbatches),
by the descent of ``fit.py``.

usage: python benchmarks/planner/kernels.py
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from fit import Numbers, descend
from machines import V100_32

from hpcdl.planner import attention, compute
from hpcdl.planner.case import Case
from hpcdl.planner.engines import find_engine
from hpcdl.planner.products import Product, occupied_flops
from hpcdl.planner.space import Candidates
from hpcdl.sites.measured import INPUT, OUTPUT, WEIGHT, measured_products
from hpcdl.sites.node import Links, NodeType
from hpcdl.sites.profile import default_profile
from hpcdl.sites.site import Network
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.job import Layout
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training

CALIBRATION = Path(__file__).parent / "calibration"
V100_BOUNDS = {
    "gemm_efficiency": (0.66, 0.80),  # its products alone: forward and backward
    "memory_efficiency": (0.60, 0.95),
    "score_efficiency": (0.30, 0.95),
    "kernel_launch_s": (1e-6, 20e-6),
}
# Heads by the size of the scores that the profile stores.
_V100_HEADS = {"GPT-350M": 16, "GPT-1.3B": 32, "GPT-2.6B": 32, "GPT-6.7B": 32, "GPT-13B": 40}
_V100_NODE = NodeType(device=V100_32, devices=1, cores=10, host_memory="192GiB", links=Links(intra_node=150))


def main() -> None:
    """Products, attention, V100."""
    print_products()
    print_attention()
    print_v100()


def print_products() -> None:
    """Mean error of the formula's time, once its efficiency is right in the median."""
    for name in ("A100", "B200"):
        found = measured_products(name)
        assert found is not None
        product = Product(*found.sizes.T)
        for word, end in (("output", OUTPUT), ("input gradient", INPUT), ("weight gradient", WEIGHT)):
            those = found.ends == end
            tiled = product.flops / occupied_flops(product, found.processors, adding=end == WEIGHT)
            for what, share in (("tiles", tiled), ("plain", np.ones(len(tiled)))):
                right = np.median(found.efficiency[those] / share[those])
                off = np.abs(share[those] * right / found.efficiency[those] - 1)
                print(
                    f"{name} {word}, {what}: {right:.3f} of peak, mean error {off.mean():.1%}, {those.sum()}"
                )


def print_attention() -> None:
    """Efficiencies of flash attention, causal FLOPs, that make the median of the measured shapes right.

    Shapes whose values are narrower than their keys (latent attention) are left out.
    """
    groups: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for line in _lines("attention"):
        if line["qk_head_dim"] != line["v_head_dim"]:
            continue
        blocks = float(line["batch"]) * float(line["seq"]) * float(line["heads"]) / attention.QUERIES
        groups[line["device"], line["pass"]].append((blocks, float(line["efficiency"]) / 2))
    for (device, way), rows in groups.items():
        blocks, measured = np.array(rows).T
        processors = measured_products(device[:4]).processors  # type: ignore[union-attr]
        tail = attention.TAIL if way == "fwd" else attention.TAIL_BACKWARD
        share = 1 / (1 + tail * processors / blocks)
        right = np.median(measured / share)
        off = np.abs(share * right / measured - 1)
        print(f"{device} flash {way}: {right:.3f} of peak, mean error {off.mean():.1%}, {len(rows)}")


def print_v100() -> None:
    """The numbers of a V100, and how far layers are off."""
    layers = _v100_layers()
    found = descend(lambda numbers: float(np.mean(np.abs(_v100_errors(layers, numbers)))), V100_BOUNDS)
    for name, value in found.items():
        print(f"V100 {name} {value:.4g}")
    errors = _v100_errors(layers, found)
    print(f"V100 layers: mean error {np.abs(np.expm1(errors)).mean():.1%}, {errors.size} of them")


def _v100_errors(layers: list[tuple[Case, Candidates, float, float]], numbers: Numbers) -> np.ndarray:
    """Logarithms of predicted over measured, forward and backward."""
    errors = []
    for case, one, forward, backward in layers:
        work = compute.layer(replace(case, profile=case.profile.model_copy(update=numbers)), one)
        errors.append((np.log(work.forward[0] / forward), np.log(work.backward[0] / backward)))
    return np.array(errors)


def _v100_layers() -> list[tuple[Case, Candidates, float, float]]:
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    shapes: dict[str, Model] = {}
    for line in _lines("v100_layers"):
        times = sums[line["model"], line["microbatch"]]
        times[0] += float(line["forward_us"]) * 1e-6
        times[1] += float(line["backward_us"]) * 1e-6
        shapes[line["model"]] = Model(
            layers=int(line["layers"]),
            hidden=int(line["hidden"]),
            heads=_V100_HEADS[line["model"]],
            vocab=51200,
            sequence=int(line["seq"]),
        )
    layout = Layout(nodes=1, ranks_per_node=1, cores_per_rank=10)
    found = []
    for (name, microbatch), (forward, backward) in sums.items():
        case = Case(
            shapes[name],
            Training(global_batch=64, precision="fp16"),
            _V100_NODE,
            Network(),
            layout,
            default_profile(V100_32),
            find_engine("megatron"),
        )
        found.append((case, Candidates.of(Decomposition(microbatch=int(microbatch))), forward, backward))
    return found


def _lines(name: str) -> list[dict[str, str]]:
    with (CALIBRATION / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
