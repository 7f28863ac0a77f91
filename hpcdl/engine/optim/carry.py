"""Bringing the state of training from one layout of the flat memory to another in which less is trained.

One parameter at a time is whole on a rank, and only where it shares the state with others (ZeRO-1).
"""

from __future__ import annotations

import torch

from hpcdl.engine.optim.bucket import KINDS
from hpcdl.engine.optim.flat import Flat
from hpcdl.engine.sparse.kept import Kept


@torch.no_grad()
def whole(flat: Flat, name: str, kind: str) -> torch.Tensor:
    """One kind of state of all trained elements of a parameter, as far as this rank holds it; flat, a copy.

    The ranks that share it ask for the same names in the same order.
    """
    flat.settle()
    peers = flat.peers(name)
    values = torch.zeros(flat.elements(name), device=flat.device)
    for bucket, run in flat.places(name):
        part = bucket.state[kind][run.at]
        values[run.begin : run.begin + len(part)] = part
    if peers is not None:
        peers.all_reduce(values).wait()  # exact: to each element one rank adds it and the others zero
    return values


@torch.no_grad()
def carry(old: Flat, new: Flat) -> None:
    """Give ``new``, which trains no element that ``old`` does not, the masters and moments of ``old``."""
    for slot in old.slots:
        left = _left(old.thrift.kept.get(slot.name), new.thrift.kept.get(slot.name))
        for kind in KINDS:
            values = whole(old, slot.name, kind)
            if left is not None:
                values = values[left]
            for bucket, run in new.places(slot.name):
                part = bucket.state[kind][run.at]
                part.copy_(values[run.begin : run.begin + len(part)])


def _left(before: Kept | None, after: Kept | None) -> torch.Tensor | None:
    """Which of the elements kept before are kept after; None: all."""
    if after is None:
        return None
    return after.index if before is None else after.mask[before.index]
