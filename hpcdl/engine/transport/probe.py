"""A known answer asked of a runtime before anything relies on it.

Libraries differ in which numbers they can add, and not all of them refuse the others: Open MPI 5.0.11 sums
bf16 to garbage without an error. So each runtime adds a few numbers of every type in use, over all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from hpcdl.engine.transport.base import Transport
from hpcdl.errors import EngineError, PeerLostError

_SPEAKERS = 4  # ranks that add something: the sums stay exact in 8 bits of significand, whatever the world


def prove(transport: Transport, ranks: int, dtypes: Iterable[torch.dtype], device: torch.device) -> None:
    """Let ``transport`` add over the whole world in each of ``dtypes``.

    Raises:
        EngineError: it refuses, or the sum is wrong.
    """
    if ranks == 1:
        return
    world = transport.group(tuple(range(ranks)))
    for dtype in dict.fromkeys(dtypes):
        ones = torch.arange(1, 9, dtype=torch.float32, device=device) * 0.75
        speakers = min(ranks, _SPEAKERS)
        values = (ones * (transport.rank + 1 if transport.rank < speakers else 0)).to(dtype)
        wanted = ones * (speakers * (speakers + 1) // 2)
        try:
            transport.all_reduce(values, world).wait()
        except PeerLostError:
            raise
        except Exception as error:
            raise _unable(transport, dtype, f"refuses to sum {dtype}: {error}") from error
        if not torch.equal(values.float(), wanted):
            raise _unable(transport, dtype, f"sums {dtype} to {values.tolist()}, not to {wanted.tolist()}")


def _unable(transport: Transport, dtype: torch.dtype, what: str) -> EngineError:
    another = "or training.precision: fp32" if dtype is not torch.float32 else "or another library"
    return EngineError(
        f"{transport.name} {what} (on rank {transport.rank})",
        f"use another communication.transport {another}",
    )
