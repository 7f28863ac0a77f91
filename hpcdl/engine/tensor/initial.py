"""Initial values that do not depend on the decomposition.

Element (row, column) of a parameter is a function of the seed, the parameter's name and its place
in the full matrix. Philox is a counter-based generator (Salmon et al., SC'11): row r reads the
counters (0, r), (1, r), ... of the key hashed from seed and name, so a rank makes the rows it holds
and nothing else. Four 64-bit words a counter give four normal values (Box and Muller, 1958).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray

from hpcdl.engine.tensor.sharding import Sharding
from hpcdl.engine.topology import Topology

STD = 0.02  # of every matrix, as in GPT-2
_WORDS = 4  # of 64 bits, a Philox counter


def residual_std(layers: int) -> float:
    """Of the two projections of a layer that add to the residual stream: GPT-2's 1/√(2·layers) less."""
    return STD / math.sqrt(2 * layers)


def _key(seed: int, name: str) -> NDArray[np.uint64]:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype=np.uint64)


def normal_row(key: NDArray[np.uint64], row: int, columns: slice) -> NDArray[np.float32]:
    """Standard normal values of one row, for a range of columns."""
    first = columns.start // _WORDS
    last = -(-columns.stop // _WORDS)
    counter = np.array([first, row, 0, 0], dtype=np.uint64)
    words = np.random.Philox(counter=counter, key=key).random_raw((last - first) * _WORDS)
    # 53 bits in (0, 1]: the logarithm below must not see 0.
    uniform = ((words >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[0::2])), 2 * np.pi * uniform[1::2]
    values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    return values[columns.start - first * _WORDS :][: columns.stop - columns.start].astype(np.float32)


def normal_shard(seed: int, name: str, std: float, sharding: Sharding, topology: Topology) -> torch.Tensor:
    """This rank's part of a matrix of normal values, flat, in fp32.

    Only the rows that the part touches are made, and of those only the block's columns.
    """
    rows, columns = sharding.block(topology)
    width = columns.stop - columns.start
    span = sharding.span(topology)
    key = _key(seed, name)
    begin, end = span.start // width, -(-span.stop // width)
    values = np.empty((end - begin, width), dtype=np.float32)
    for index in range(begin, end):
        values[index - begin] = normal_row(key, rows.start + index, columns)
    values *= std
    flat = values.reshape(-1)[span.start - begin * width :][: span.stop - span.start]
    return torch.from_numpy(flat.copy())
