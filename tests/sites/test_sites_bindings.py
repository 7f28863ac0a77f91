"""Lists and masks of CPUs, as people and machines write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.sites.bindings import bound_cpus
from hpcdl.sites.node import parse_cores
from hpcdl.units import ranges

CPUS = st.sets(st.integers(0, 300), min_size=1, max_size=40)


@given(CPUS)
def test_a_list_is_read_as_it_was_written(cpus):
    assert parse_cores(ranges(cpus)) == tuple(sorted(cpus))


@given(st.lists(CPUS, min_size=1, max_size=8))
def test_masks_and_lists_name_the_same_cpus(ranks):
    masks = ",".join(hex(sum(1 << cpu for cpu in cpus)) for cpus in ranks)
    lists = ":".join(ranges(cpus) for cpus in ranks)
    expected = [sorted(cpus) for cpus in ranks]
    assert bound_cpus(f"mask_cpu:{masks}") == bound_cpus(f"verbose,mask_cpu:{masks}") == expected
    assert bound_cpus(f"list:{lists}") == expected


def test_maps_name_one_cpu_a_rank():
    assert bound_cpus("map_cpu:48,32,0x10") == [[48], [32], [16]]


def test_an_entry_with_an_asterisk_is_that_of_several_ranks():
    """srun(1): "the lists may follow a map with an asterisk and repetition count"; once it counted for one."""
    assert bound_cpus("mask_cpu:0x3*2, 0xc*2") == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert bound_cpus("map_cpu:0*3,0x10") == [[0], [0], [0], [16]]


@pytest.mark.parametrize("words", ["", "cores", "depth", "near-device", "none", "rank_ldom", "numa"])
def test_a_binding_that_names_no_cpus_has_none(words):
    assert bound_cpus(words) == []


@pytest.mark.parametrize(
    "binding",
    ["mask_cpu:fg", "mask_cpu:0x1,,0x2", "list:0-7:x", "map_cpu:one", "mask_cpu:0x1*", "map_cpu:0*x"],
)
def test_a_binding_with_a_word_that_is_none_is_refused(binding):
    with pytest.raises(ValueError, match="is no"):
        bound_cpus(binding)
