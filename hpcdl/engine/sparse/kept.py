"""Which elements of a parameter are trained: all others are zero, and nothing is kept of them.

Compute stays dense: the parameter itself has its zeros filled in. Gradient, master and optimizer state hold
the kept elements only, side by side, and share one index (SAMO: Singh and Bhatele, IPDPS 2023, section III).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_AT_ONCE = 1024**2  # elements


@dataclass(frozen=True)
class Kept:
    """The kept elements of one flattened parameter, as this rank holds it.

    Attributes:
        index: their positions, ascending, int32.
        elements: of the whole parameter.
    """

    index: torch.Tensor
    elements: int

    @classmethod
    def of(cls, mask: torch.Tensor) -> Kept:
        """Those where the flat boolean ``mask`` is true."""
        return cls(mask.nonzero().view(-1).to(torch.int32), mask.numel())

    @property
    def count(self) -> int:
        """How many are kept."""
        return self.index.numel()

    @property
    def mask(self) -> torch.Tensor:
        """Flat and boolean, true where an element is kept."""
        mask = torch.zeros(self.elements, dtype=torch.bool, device=self.index.device)
        self.expand(mask, mask.new_ones(self.count), 0)
        return mask

    def compress(self, dense: torch.Tensor) -> torch.Tensor:
        """The kept elements of ``dense``, of any shape, flat."""
        return dense.reshape(-1).index_select(0, self.index)

    def expand(self, dense: torch.Tensor, values: torch.Tensor, begin: int) -> None:
        """Write ``values``, kept elements from the ``begin``-th on, to their places in ``dense``."""
        flat, index = dense.view(-1), self.index[begin : begin + values.numel()]
        # torch writes by int64 indices only, which would be more than all else that is kept of an element.
        for start in range(0, values.numel(), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            flat.index_copy_(0, index[some].long(), values[some])

    def span(self, begin: int, stop: int) -> slice:
        """The elements of the parameter that go with the kept ones from ``begin`` to ``stop``.

        Spans of runs that follow each other follow each other too, and those of all runs are the whole.
        """
        first = 0 if begin == 0 else int(self.index[begin])
        last = self.elements if stop == self.count else int(self.index[stop])
        return slice(first, last)
