"""Dropout whose masks do not depend on the decomposition.

Whether an element is dropped is a function of the seed, the step, the site's name and the element's place:
its sequence in the global batch, its token, its column (or head, query and key). So a rank makes the masks of
what it holds and nothing else, a recomputed forward drops what the first one dropped, and every decomposition
trains the same model.

The function is the counter-based generator "Squares" of Widynski (arXiv 2004.06278), in int64 arithmetic that
wraps, so that it runs on any device: the place is the counter, the rest is hashed to the key.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch

from hpcdl.engine.tensor.parameters import Factory
from hpcdl.engine.tensor.sharding import Sharding
from hpcdl.spec.model import Model

_WORD = 2**32
_LOW = _WORD - 1


class Rows(NamedTuple):
    """The consecutive sequences of one microbatch, by their place in the whole batch of one step."""

    step: int
    first: int


def site_key(seed: int, step: int, site: str) -> int:
    """The generator's key as an int64: odd, and irregular, each half of eight different digits 1 to f."""
    digest = hashlib.blake2b(f"{seed}:{step}:{site}".encode()).digest()
    high = sorted(range(1, 16), key=lambda digit: digest[digit])[:8]
    low = sorted(range(1, 16), key=lambda digit: digest[digit + 16])[:8]
    # Eight of fifteen digits cannot all be even.
    low.append(low.pop(next(place for place, digit in enumerate(low) if digit % 2)))
    key = int("".join(f"{digit:x}" for digit in high + low), 16)
    return key - 2**64 if key >= 2**63 else key


def squares(counter: torch.Tensor, key: int) -> torch.Tensor:
    """32 random bits for each int64 ``counter``: four rounds of squaring the middle out."""
    weyl = counter * key
    following = weyl + key
    state = weyl
    for added in (weyl, following, weyl):
        state = torch.addcmul(added, state, state)
        state = (state << 32).bitwise_or_(state.bitwise_right_shift_(32).bitwise_and_(_LOW))
    return torch.addcmul(following, state, state).bitwise_right_shift_(32).bitwise_and_(_LOW)


class Dropout:
    """One place of the model where elements are dropped and the others scaled up for it.

    Args:
        factory: gives the seed and this rank's place.
        site: the name of the place, of its own in the model.
        sharding: how one sequence's tensor is cut.
        probability: of an element to be dropped, below 1.
    """

    def __init__(self, factory: Factory, site: str, sharding: Sharding, probability: float) -> None:
        self._seed = factory.numerics.seed
        self._site = site
        self._shape = sharding.shape
        self._starts = tuple(piece.start for piece in sharding.block(factory.topology))
        self._threshold = min(round(probability * _WORD), _WORD - 1)

    def drops(self, rows: Rows | None) -> bool:
        """Whether anything is dropped: not in evaluation, where ``rows`` is None."""
        return rows is not None and self._threshold > 0

    def __call__(self, values: torch.Tensor, rows: Rows | None) -> torch.Tensor:
        """``values``, whose first dimension are the sequences ``rows``, with some of them 0."""
        if rows is None or not self._threshold:
            return values
        key = site_key(self._seed, rows.step, self._site)
        dropped = squares(self._places(values, rows.first), key) < self._threshold
        return values.masked_fill(dropped, 0.0) * (_WORD / (_WORD - self._threshold))

    def _places(self, values: torch.Tensor, first: int) -> torch.Tensor:
        """The number of each element among those of the whole batch."""
        place = torch.arange(first, first + values.shape[0], device=values.device)
        for size, start, full in zip(values.shape[1:], self._starts, self._shape, strict=True):
            along = torch.arange(start, start + size, device=values.device)
            place = place.unsqueeze(-1) * full + along
        return place


def stream_dropout(factory: Factory, site: str, model: Model) -> Dropout:
    """Dropout of the residual stream or of what is added to it: hidden split over y."""
    sharding = Sharding((model.sequence, model.hidden), (None, "y"), flat=False)
    return Dropout(factory, site, sharding, model.dropout)
