"""What the layers of one stage leave under way, so that communication runs beside computation.

A layer owes two gradients: that of its input, which the stage before waits for, and that of its weight, which
nobody waits for until the step ends. The second is handed in here as work to do: now, or, while
``deferring``, when the stage has nothing better to do. Its reduce-scatter over z is begun then and finished
when the backward ends (ORS of AxoNN, SC'24, arXiv 2502.08145, section V-D); weights are gathered over z one
use ahead (see ``prefetch``).

Whoever runs a pass, forward or backward, brackets it with ``begin`` and ``settle``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable

import torch

from hpcdl.engine.groups import Coming, Groups
from hpcdl.engine.tensor.fetch import Fetch
from hpcdl.engine.tensor.prefetch import Prefetch, Source
from hpcdl.spec.job import Overlap

Work = Callable[[], None]
Deliver = Callable[[torch.Tensor], None]

_SCATTERS = 4  # left under way at most, one layer's: each holds a whole block of gradient


class Later:
    """What one stage has begun and still owes.

    Args:
        groups: weights are gathered over ``weights``, gradients scattered over ``z``.
        overlap: which communication runs beside computation.
        fetch: brings weights that lie on the host; None if they lie on the device.
    """

    def __init__(self, groups: Groups, overlap: Overlap, fetch: Fetch | None = None) -> None:
        self.deferring = False
        self.overlap = overlap
        self._groups = groups
        cut = groups.z.size > 1
        self._source: Source = fetch or groups.weights
        ahead = overlap.weight_gather and (cut or fetch is not None)
        self._prefetch = Prefetch(self._source) if ahead else None
        self._pending = _SCATTERS if cut and overlap.weight_scatter else 0
        self._left: list[Work] = []
        self._scatters: deque[tuple[Coming, Deliver]] = deque()

    def begin(self, key: Hashable) -> None:
        """Begin a pass; those of one ``key`` use the same weights in the same order."""
        if self._prefetch is not None:
            self._prefetch.begin(key)

    def gathered(self, shard: torch.Tensor) -> torch.Tensor:
        """The whole block, flat, of a weight that z cuts; alone on z, the shard or a copy of it."""
        if self._prefetch is not None:
            return self._prefetch.take(shard)
        return self._source.gather(shard).wait()

    def scatter(self, gradient: torch.Tensor, deliver: Deliver) -> None:
        """Sum a flat block of gradient over z and ``deliver`` this rank's shard, in the order of calls."""
        self._scatters.append((self._groups.z.scatter(gradient), deliver))
        self._finish(self._pending)

    def do(self, work: Work) -> None:
        """Do ``work`` now, or leave it to who calls ``take``."""
        if self.deferring:
            self._left.append(work)
        else:
            work()

    def take(self) -> list[Work]:
        """What was left since the last call, in order."""
        left, self._left = self._left, []
        return left

    def settle(self) -> None:
        """Return when everything that was begun is finished and delivered; ends the pass."""
        if self._prefetch is not None:
            self._prefetch.end()
        self._finish(0)

    def _finish(self, pending: int) -> None:
        """Finish the oldest scatters until ``pending`` are left."""
        while len(self._scatters) > pending:
            coming, deliver = self._scatters.popleft()
            deliver(coming.wait())
