"""Whole documents in windows: nothing lost, nothing cut that fits, padding only where nothing fits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.data.packing import best_fit, pack

documents = st.lists(st.integers(1, 25), max_size=40)
windows = st.integers(1, 9)


@given(lengths=documents, window=windows)
def test_every_token_but_the_first_of_its_document_is_a_target_once(lengths, window):
    packing = pack(np.cumsum(lengths, dtype=np.int64), window)
    targets = [
        token
        for start, _, counted in packing.pieces_P3.tolist()
        for token in range(start + 1, start + 1 + counted)
    ]
    firsts = set(np.cumsum([0, *lengths]).tolist())
    assert sorted(targets) == [token for token in range(sum(lengths)) if token not in firsts]
    assert packing.counted_W.sum() == len(targets)


@given(lengths=documents, window=windows)
def test_no_window_overflows_and_no_document_that_fits_is_cut(lengths, window):
    packing = pack(np.cumsum(lengths, dtype=np.int64), window)
    for first, last in zip(packing.first_W[:-1], packing.first_W[1:], strict=True):
        assert 0 < packing.pieces_P3[first:last, 1].sum() <= window
    starts = np.cumsum([0, *lengths])
    pieces = {int(start): int(length) for start, length, _ in packing.pieces_P3}
    for start, length in zip(starts[:-1].tolist(), lengths, strict=True):
        if 2 <= length <= window:
            assert pieces[start] == length


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_a_piece_goes_to_the_fullest_window_that_has_room(lengths):
    """Against the rule told plainly: among open windows with room, one with the least."""
    chosen, opened = best_fit(np.array(lengths), 9)
    room = []
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        enough = [left for left in room if left >= lengths[piece]]
        if enough:
            assert room[chosen[piece]] == min(enough)
        else:
            assert chosen[piece] == len(room)
            assert opened[len(room)] == piece
            room.append(9)
        room[chosen[piece]] -= lengths[piece]


@given(lengths=documents, window=windows)
def test_windows_are_in_the_order_of_the_documents_that_opened_them(lengths, window):
    """The last windows are held out; they must not be those of the shortest documents."""
    packing = pack(np.cumsum(lengths, dtype=np.int64), window)
    longest = []
    for first, last in zip(packing.first_W[:-1], packing.first_W[1:], strict=True):
        pieces = packing.pieces_P3[first:last]
        longest.append(pieces[np.argmax(pieces[:, 1]), 0])
    assert longest == sorted(longest)
