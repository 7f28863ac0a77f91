"""The geometry of resharding against brute force: element by element."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.checkpoint.overlap import Region, copies

ROWS, COLUMNS = 6, 5


def intervals(size):
    return st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(
        lambda pair: (min(pair), max(pair)) if pair[0] != pair[1] else (pair[0], pair[0] + 1)
    )


@st.composite
def regions(draw, rows=ROWS):
    block = (draw(intervals(rows)), draw(intervals(COLUMNS)))
    elements = (block[0][1] - block[0][0]) * (block[1][1] - block[1][0])
    start = draw(st.integers(0, elements))
    return Region.of(block, (start, draw(st.integers(start, elements))))


def elements(region, full):
    """The flat part, as the ranks make it."""
    block = full[slice(*region.rows), slice(*region.columns)]
    return block.reshape(-1)[slice(*region.span)]


FULL = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)


@given(regions())
def test_rectangles_are_the_part_in_its_order(region):
    found = [FULL[slice(*rows), slice(*columns)].reshape(-1) for rows, columns in region.rectangles()]
    assert len(found) <= 3
    assert np.concatenate([*found, np.array([], int)]).tolist() == elements(region, FULL).tolist()


@given(regions(), regions())
def test_copies_bring_every_shared_element_once_to_its_place(source, target):
    theirs, ours = elements(source, FULL), elements(target, FULL)
    taken = np.full(ours.shape, -1)
    for copy in copies(source, target):
        for row in range(copy.rows):
            there, here = copy.source + row * copy.source_stride, copy.target + row * copy.target_stride
            assert there + copy.columns <= copy.source_stop
            assert (taken[here : here + copy.columns] == -1).all()
            taken[here : here + copy.columns] = theirs[there : there + copy.columns]
    assert taken.tolist() == np.where(np.isin(ours, theirs), ours, -1).tolist()


@given(regions(rows=1), regions(rows=1))
def test_a_vector_is_a_matrix_of_one_row(source, target):
    flat = [Region.of((region.columns,), region.span) for region in (source, target)]
    assert copies(*flat) == copies(source, target)
