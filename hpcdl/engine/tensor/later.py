"""Weight-gradient work that a backward leaves for later.

A layer owes two gradients: that of its input, which the stage before waits for, and that of its weight, which
nobody waits for until the step ends. The second is handed in here as work to do: at once, or, while
``deferring``, when the stage has nothing better to do.
"""

from __future__ import annotations

from collections.abc import Callable

Work = Callable[[], None]


class Later:
    """What the layers of one stage still owe."""

    def __init__(self) -> None:
        self.deferring = False
        self._left: list[Work] = []

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
        """Return when everything that was begun is finished; called at the end of a backward."""
