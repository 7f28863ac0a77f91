"""Which nodes a job has, in the scheduler's words, and where ranks that never came should be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.nodelist import allocated, expanded, host_of_first, suspects, whereabouts
from hpcdl.engine.ranks import Place


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("nid[001006,001009-001011]", ["nid001006", "nid001009", "nid001010", "nid001011"]),
        ("login1,a[1-2],gpu-b[09-10]", ["login1", "a1", "a2", "gpu-b09", "gpu-b10"]),
        ("rack[1-2]n[1-2]", ["rack1n1", "rack1n2", "rack2n1", "rack2n2"]),
        ("", []),
    ],
)
def test_slurms_lists_are_read(listed, names):
    assert expanded(listed) == names


def test_the_list_of_pbs_names_a_node_once(tmp_path):
    file = tmp_path / "nodes"
    file.write_text("x1\nx1\nx2\nx2\n")
    assert allocated({"PBS_NODEFILE": str(file)}) == ["x1", "x2"]
    assert allocated({"PBS_NODEFILE": str(tmp_path / "gone")}) == []
    assert allocated({"SLURM_JOB_NODELIST": "n[1-2]", "PBS_NODEFILE": str(file)}) == ["n1", "n2"]
    assert allocated({}) == []


WORLDS = st.tuples(st.integers(1, 8), st.integers(1, 6), st.data())


@given(WORLDS)
def test_who_never_came_is_where_the_list_says(world):
    nodes, each, data = world
    names = [f"n{node}" for node in range(nodes)]
    missing = data.draw(st.sets(st.integers(0, nodes * each - 1), min_size=1))
    came = {rank: names[rank // each] for rank in range(nodes * each) if rank not in missing}
    found = whereabouts(sorted(missing), came, names)
    assert {rank: host for host, ranks in found.items() for rank in ranks} == {
        rank: names[rank // each] for rank in missing
    }
    blamed = suspects(found, came.values())
    whole = [
        name for node, name in enumerate(names) if not missing & set(range(node * each, (node + 1) * each))
    ]
    assert blamed == (found if whole else {})


def test_ranks_in_another_order_are_looked_for_where_nobody_came_from():
    names = ["a", "b", "c"]
    assert whereabouts([1], {0: "c", 2: "a"}, names) == {"b": (1,)}
    assert whereabouts([1, 2], {0: "c"}, names) == {}
    assert whereabouts([1], {0: "a.example.org"}, []) == {}


@pytest.mark.parametrize(
    ("missing", "came", "names"),
    [
        ([3], {0: "n1", 1: "n1", 2: "n2"}, ["batch1", "n1", "n2"]),
        ([2, 5], {0: "n1", 1: "n1", 3: "n2", 4: "n2"}, ["batch1", "n1", "n2"]),
        ([1], {0: "n1.example.org"}, ["n1"]),
        ([1], {0: "n2.example.org"}, ["n2", "n1"]),
    ],
    ids=["LSF's own host", "the same, in pairs", "a longer name", "two of them"],
)
def test_a_node_from_which_nobody_should_come_is_not_named(missing, came, names):
    assert whereabouts(missing, came, names) == {}


@pytest.mark.parametrize(
    ("rank", "host", "nodes", "first"),
    [
        (1, "a", "a b", "a"),
        (2, "b", "a b", "a"),
        (2, "b.example.org", "a b", None),
        (2, "c", "a b", None),
        (2, "b", "launcher a b", None),
        (1, "a", "a", "a"),
        (2, "b", "", None),
    ],
)
def test_where_rank_0_should_be_is_known_from_ones_own_place(rank, host, nodes, first):
    assert host_of_first(Place(rank, rank % 2, 4, host), nodes.split()) == first
