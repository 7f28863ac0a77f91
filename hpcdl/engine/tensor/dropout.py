"""Which sequences a forward works on: what a random number may depend on besides its place in a tensor."""

from __future__ import annotations

from typing import NamedTuple


class Rows(NamedTuple):
    """The consecutive sequences of one microbatch, by their place in the whole batch of one step."""

    step: int
    first: int
