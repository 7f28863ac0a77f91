"""Buckets lose nothing, keep backward's order and their size."""

from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.buckets import Piece, layout

SIZES = st.lists(st.tuples(st.integers(1, 50), st.sampled_from(["data", "batch"])), max_size=30)


def pieces_of(sizes):
    return [Piece(f"p{index}", elements, group) for index, (elements, group) in enumerate(sizes)]


@given(SIZES, st.integers(1, 100))
def test_layout_holds_every_piece_once_in_reverse_order(sizes, limit):
    pieces = pieces_of(sizes)
    buckets = layout(pieces, limit)
    for group in ("data", "batch"):
        laid = [piece for bucket in buckets if bucket.group == group for piece in bucket.pieces]
        assert laid == [piece for piece in reversed(pieces) if piece.group == group]


@given(SIZES, st.integers(1, 100))
def test_layout_respects_the_limit(sizes, limit):
    """Only a piece that is too large alone may break it."""
    for bucket in layout(pieces_of(sizes), limit):
        assert bucket.elements <= limit or len(bucket.pieces) == 1
        assert all(piece.group == bucket.group for piece in bucket.pieces)


@given(SIZES, st.integers(1, 100))
def test_layout_orders_buckets_by_completion(sizes, limit):
    """A bucket is complete when backward reaches its last piece; launching waits for nothing later."""
    pieces = pieces_of(sizes)
    position = {piece.name: index for index, piece in enumerate(reversed(pieces))}
    completed = [position[bucket.pieces[-1].name] for bucket in layout(pieces, limit)]
    assert completed == sorted(completed)


@given(SIZES, st.integers(1, 100))
def test_offsets_tile_the_buffer(sizes, limit):
    for bucket in layout(pieces_of(sizes), limit):
        end = 0
        for piece in bucket.pieces:
            assert bucket.offsets[piece.name] == end
            end += piece.elements
        assert end == bucket.elements
