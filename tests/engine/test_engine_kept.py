"""What is kept of a parameter: there and back, and nothing of the rest."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.sparse import kept as module
from hpcdl.engine.sparse.kept import Kept

MASKS = st.lists(st.booleans(), min_size=1, max_size=80).map(torch.tensor)


def values(elements, seed=0):
    return torch.randn(elements, generator=torch.Generator().manual_seed(seed))


@given(MASKS)
def test_compressed_and_expanded_are_the_masked_values(mask):
    kept, dense = Kept.of(mask), values(len(mask))
    assert kept.index.dtype == torch.int32
    assert kept.count == int(mask.sum())
    assert torch.equal(kept.mask, mask)
    small = kept.compress(dense)
    assert torch.equal(small, dense[mask])
    room = torch.zeros(len(mask))
    kept.expand(room, small, 0)
    assert torch.equal(room, dense * mask)


@given(MASKS, st.data())
def test_runs_of_kept_elements_expand_to_their_places(mask, data):
    """As chunks do, each with a piece; a matrix as well as a vector."""
    kept, dense = Kept.of(mask), values(len(mask))
    small, room = kept.compress(dense), torch.zeros(len(mask), 1)
    ends = sorted({0, kept.count, *data.draw(st.lists(st.integers(0, kept.count), max_size=3))})
    for begin, end in pairwise(ends):
        kept.expand(room, small[begin:end], begin)
    assert torch.equal(room.view(-1), dense * mask)


@given(MASKS, st.data())
def test_spans_of_runs_tile_the_parameter_and_hold_their_elements(mask, data):
    kept = Kept.of(mask)
    inner = data.draw(st.lists(st.integers(0, kept.count), max_size=3))
    ends = sorted({0, kept.count, *inner})
    runs = list(pairwise(ends)) or [(0, 0)]
    spans = [kept.span(begin, stop) for begin, stop in runs]
    assert spans[0].start == 0
    assert spans[-1].stop == len(mask)
    assert all(one.stop == other.start for one, other in pairwise(spans))
    for (begin, stop), span in zip(runs, spans, strict=True):
        assert all(span.start <= place < span.stop for place in kept.index[begin:stop].tolist())


@pytest.mark.parametrize("size", [1, 7, 64])
def test_indices_are_widened_a_piece_at_a_time(monkeypatch, size):
    monkeypatch.setattr(module, "_AT_ONCE", size)
    mask = values(50) > 0
    kept, dense = Kept.of(mask), values(50, 1)
    room = torch.zeros(50)
    kept.expand(room, kept.compress(dense), 0)
    assert torch.equal(room, dense * mask)
