"""What one rank measures in the pre-flight, alone and with others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from hpcdl.engine.preflight.measuring import SIZES, all_reduce_seconds, forget, product_seconds
from hpcdl.engine.preflight.pairing import Way
from hpcdl.engine.transport.observed import Observed
from hpcdl.placement import Placement, Seat

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LANE = "preflight"


class Probe:
    """All ranks make theirs at the same time, and call its functions in the same order.

    Args:
        transport: reaches the others.
        device: where this rank computes.
        precision: in which the run does.
        ranks: of the run.
    """

    def __init__(self, transport: Observed, device: torch.device, precision: str, ranks: int) -> None:
        self._transport, self._device, self._dtype = transport, device, _DTYPES[precision]
        self._everyone = tuple(range(ranks))
        self.sizes = SIZES[device.type]

    def timed(self, seat: Seat, way: Way, lane: str) -> Seat:
        """This rank with its times.

        Args:
            seat: this rank.
            way: what it measures.
            lane: a name that no other measurement of the run has.
        """
        links = [seconds for seconds in self._links(way, lane) if seconds is not None]
        return replace(
            seat,
            product_seconds=product_seconds(self._device, self._dtype),
            host_seconds=self._among(way.together, _LANE),
            link_seconds=min(links, default=None),
        )

    def _links(self, way: Way, lane: str) -> Iterator[float | None]:
        """Who has no partner in a round makes a group alone: all must have made equally many."""
        mine = self._transport.rank
        for number, partner in enumerate(way.partners):
            pair = (mine,) if partner is None else (min(mine, partner), max(mine, partner))
            yield self._among(pair, f"{_LANE} {lane} {number}")

    def _among(self, ranks: tuple[int, ...], lane: str) -> float | None:
        if not ranks:
            return None
        group = self._transport.group(ranks, lane)
        return all_reduce_seconds(self._transport, group, self._device) if len(ranks) > 1 else None

    def world(self, placement: Placement) -> Placement:
        """The placement with the time of an all-reduce over all ranks, and how much was done for a time."""
        seconds = self._among(self._everyone, "") if len(self._everyone) > 1 else None
        return replace(
            placement,
            product_flops=self.sizes.flops,
            all_reduce_seconds=seconds,
            all_reduce_bytes=self.sizes.bytes,
        )

    def close(self) -> None:
        """Leave the memory of the device as it was."""
        forget(self._device)
