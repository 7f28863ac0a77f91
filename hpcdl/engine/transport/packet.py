"""Several tensors and a few numbers in one message: a flat buffer of bytes.

The numbers come first, then each tensor at a place of its own with room for ``rows`` rows, so that a message
with fewer rows has the same size and its receive can be posted before anybody knows what it will carry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

_ALIGNMENT = 16  # bytes; a view of a tensor must begin at a multiple of its element


@dataclass(frozen=True)
class Field:
    """One tensor of a message: its shape without the leading dimension, which is rows, and its type."""

    tail: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.tail) * self.dtype.itemsize


Signature = tuple[Field, ...]


class Packet:
    """The layout of one kind of message.

    Args:
        signature: its tensors.
        numbers: how many integers travel with them.
        rows: of a tensor, at most.
        device: where buffers lie.
    """

    def __init__(self, signature: Signature, numbers: int, rows: int, device: torch.device) -> None:
        self._signature = signature
        self._numbers = 8 * numbers
        sizes = [self._numbers, *(rows * field.row_bytes for field in signature)]
        self._offsets = list(accumulate((_aligned(size) for size in sizes), initial=0))[1:]
        self._device = device
        self.size = self._offsets[-1]

    def empty(self) -> torch.Tensor:
        """A buffer to receive into."""
        return torch.empty(self.size, dtype=torch.uint8, device=self._device)

    def pack(self, numbers: tuple[int, ...], tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The message that carries ``numbers`` and a copy of ``tensors``."""
        buffer = self.empty()
        buffer[: self._numbers].view(torch.int64).copy_(torch.tensor(numbers))
        for place, tensor in zip(
            self.tensors(buffer, len(tensors[0]) if tensors else 0), tensors, strict=True
        ):
            place.copy_(tensor)
        return buffer

    def numbers(self, buffer: torch.Tensor) -> list[int]:
        """The integers in a message."""
        found: list[int] = buffer[: self._numbers].view(torch.int64).tolist()
        return found

    def tensors(self, buffer: torch.Tensor, rows: int) -> tuple[torch.Tensor, ...]:
        """The tensors of a message, of ``rows`` rows each, where they lie in ``buffer``."""
        return tuple(
            buffer[start : start + rows * field.row_bytes].view(field.dtype).view(rows, *field.tail)
            for start, field in zip(self._offsets, self._signature, strict=False)
        )


def alike(
    signatures: Sequence[Signature], numbers: int, rows: int, device: torch.device
) -> tuple[Packet, ...]:
    """A packet for each of ``signatures``, all of one size: who receives need not know which one comes."""
    packets = tuple(Packet(signature, numbers, rows, device) for signature in signatures)
    largest = max(packet.size for packet in packets)
    for packet in packets:
        packet.size = largest
    return packets


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
