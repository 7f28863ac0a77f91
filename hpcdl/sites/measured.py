"""Matrix products that were measured on a device: what a formula is held to, and where it is corrected.

``products.csv`` has one product a line with its source: the output of a linear layer (m tokens, n outputs,
k inputs), the gradient of its input, or the gradient of its weight, added in fp32 to what is there.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FILE = Path(__file__).with_name("products.csv")
_ENDS = ("output", "input gradient", "weight gradient")
_PROCESSORS = {"A100": 108, "B200": 148}  # streaming multiprocessors, NVIDIA's data sheets

OUTPUT, INPUT, WEIGHT = range(len(_ENDS))
"""What a product is for."""


@dataclass(frozen=True)
class Measured:
    """What one kind of device reached.

    Attributes:
        device: whose products they are.
        processors: of that device.
        sizes: m, n and k, shape (count, 3).
        ends: OUTPUT, INPUT or WEIGHT of each.
        efficiency: share of the dense peak.
        source: where they were published.
    """

    device: str
    processors: int
    sizes: NDArray[np.float64]
    ends: NDArray[np.int64]
    efficiency: NDArray[np.float64]
    source: str


@lru_cache(maxsize=8)
def measured_products(name: str) -> Measured | None:
    """Products of devices of the kind ``name``; None where there are none."""
    if name not in _PROCESSORS:
        return None
    with _FILE.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["device"].startswith(name)]
    return Measured(
        device=lines[0]["device"],
        processors=_PROCESSORS[name],
        sizes=np.array([[float(line[size]) for size in "mnk"] for line in lines]),
        ends=np.array([_ENDS.index(line["product"]) for line in lines]),
        efficiency=np.array([float(line["efficiency"]) for line in lines]),
        source=lines[0]["source"],
    )
