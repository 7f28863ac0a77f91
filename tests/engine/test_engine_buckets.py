"""Lines lose nothing and keep backward's order; chunks, shares and buckets tile them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.buckets import ALIGNMENT, Kind, Piece, chunks, lines, spans

KINDS = st.builds(Kind, st.sampled_from(["data", "batch"]), st.booleans(), st.booleans())
PIECES = st.lists(st.tuples(st.integers(1, 500), KINDS), min_size=1, max_size=20).map(
    lambda sizes: [Piece(f"p{index}", elements, kind) for index, (elements, kind) in enumerate(sizes)]
)
RANKS = st.fixed_dictionaries({"data": st.integers(1, 4), "batch": st.integers(1, 6)})
LIMIT = st.integers(1, 1000)
PER_CHUNK = st.integers(1, 4)


def covered(line, whole):
    """Elements of every parameter that runs in the given spans of a line hold, in order of appearance."""
    found = {}
    for span in whole:
        for run in line.runs(span):
            assert 0 <= run.at.start < run.at.stop <= span.stop - span.start
            begin = run.begin
            found.setdefault(run.name, []).extend(range(begin, begin + run.at.stop - run.at.start))
    return found


@given(PIECES, RANKS)
def test_lines_hold_every_piece_once_in_reverse_order(pieces, ranks):
    made = lines(pieces, ranks)
    assert len({line.kind for line in made}) == len(made)
    for line in made:
        assert list(line.pieces) == [piece for piece in reversed(pieces) if piece.kind == line.kind]
    assert sum(len(line.pieces) for line in made) == len(pieces)


@given(PIECES, RANKS)
def test_pieces_start_aligned_and_do_not_overlap(pieces, ranks):
    for line in lines(pieces, ranks):
        end = 0
        for piece in line.pieces:
            start = line.starts[piece.name]
            assert start % ALIGNMENT == 0
            assert end <= start < end + ALIGNMENT
            end = start + piece.elements
        assert end <= line.elements < end + (1 + ranks[line.kind.group]) * ALIGNMENT


@given(PIECES, RANKS, LIMIT, PER_CHUNK)
def test_shares_of_chunks_cut_into_buckets_hold_every_element_once(pieces, ranks, limit, per_chunk):
    """What the ranks of a group update together, each its share, is every parameter whole."""
    made = lines(pieces, ranks)
    cut = chunks(made, pieces, limit, per_chunk)
    for line in made:
        parts = ranks[line.kind.group]
        width = line.bucket(limit) // parts
        held = [
            bucket
            for index in range(parts)
            for chunk in cut
            if chunk.line is line
            for bucket in spans(chunk.share(index, parts), width)
        ]
        assert all(bucket.start % ALIGNMENT == 0 for bucket in held)
        assert all(bucket.stop - bucket.start <= width for bucket in held)
        found = covered(line, held)
        assert {name: sorted(elements) for name, elements in found.items()} == {
            piece.name: list(range(piece.elements)) for piece in line.pieces
        }


@given(PIECES, RANKS, LIMIT, PER_CHUNK)
def test_chunks_come_in_the_order_in_which_backward_completes_them(pieces, ranks, limit, per_chunk):
    reached = {piece.name: place for place, piece in enumerate(reversed(pieces))}
    cut = chunks(lines(pieces, ranks), pieces, limit, per_chunk)
    completed = [max(reached[run.name] for run in chunk.line.runs(chunk.span)) for chunk in cut]
    assert completed == sorted(completed)


@given(PIECES, st.data(), RANKS, LIMIT, PER_CHUNK)
def test_pieces_of_which_nothing_is_left_are_in_no_chunk(pieces, data, ranks, limit, per_chunk):
    """As a matrix of which this rank holds pruned elements only; even a chunk may then be padding alone."""
    gone = data.draw(st.sets(st.sampled_from([piece.name for piece in pieces])))
    left = [replace(piece, elements=0) if piece.name in gone else piece for piece in pieces]
    made = lines(left, ranks)
    cut = chunks(made, left, limit, per_chunk)
    for line in made:
        spans_of_line = [chunk.span for chunk in cut if chunk.line is line]
        wanted = {piece.name: list(range(piece.elements)) for piece in line.pieces if piece.elements}
        found = covered(line, sorted(spans_of_line, key=lambda span: span.start))
        assert found == wanted


@given(PIECES, RANKS, LIMIT)
def test_a_bucket_is_as_large_as_asked_up_to_what_the_group_can_share(pieces, ranks, limit):
    for line in lines(pieces, ranks):
        unit = ALIGNMENT * ranks[line.kind.group]
        assert line.bucket(limit) % unit == 0
        assert limit <= line.bucket(limit) < limit + unit


@pytest.mark.parametrize(("width", "expected"), [(4, [(0, 4), (4, 8), (8, 10)]), (20, [(0, 10)])])
def test_the_last_span_may_be_shorter(width, expected):
    assert [(span.start, span.stop) for span in spans(slice(0, 10), width)] == expected
