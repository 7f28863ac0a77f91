"""The nodes that are named are those that are wrong, wherever they stand among the others."""

from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdl.engine.preflight import pairing
from hpcdl.engine.preflight.judging import Plan, Rule, crowded, laggards, misplaced, slow
from hpcdl.engine.preflight.verdict import Verdict, verdict
from hpcdl.errors import BadNodeError, PlacementError
from hpcdl.placement import Device, Host, Nic, Placement, Seat, from_line, line
from hpcdl.spec.job import Layout

RULE = Rule(factor=2.0, floor=1e-3)


def device(host, index):
    return Device(index, "H100", f"GPU-{host}-{index}", f"0000:{index:02x}:00", 80 << 30, numa=0)


def fleet(nodes, each, cores=4):
    """Ranks where they should be, one device each."""
    seats = [
        Seat(rank, rank % each, f"n{rank // each}", 100 + rank, f"0-{cores - 1}", cores, (0,), devices=each,
             device=device(rank // each, rank % each))
        for rank in range(nodes * each)
    ]  # fmt: skip
    hosts = [Host(f"n{node}", f"n{node}.local", each * cores) for node in range(nodes)]
    return Placement(1, tuple(hosts), tuple(seats))


def plan(nodes, each, cores=4, **changes):
    told = Plan(Layout(nodes=nodes, ranks_per_node=each, cores_per_rank=cores), devices=True)
    return replace(told, **changes)


def changed(placement, rank, **changes):
    seats = [replace(seat, **changes) if seat.rank == rank else seat for seat in placement.seats]
    return replace(placement, seats=tuple(seats))


SIZES = st.tuples(st.integers(1, 6), st.integers(1, 5))


@given(SIZES)
def test_ranks_that_are_where_they_should_be_are_left_alone(size):
    assert misplaced(fleet(*size), plan(*size)) == []


@given(SIZES, st.data())
def test_the_node_with_two_ranks_on_one_device_is_named_with_both(size, data):
    nodes, each = size[0], size[1] + 1
    placement = fleet(nodes, each)
    one, other = sorted(data.draw(st.sets(st.integers(0, each - 1), min_size=2, max_size=2)))
    node = data.draw(st.integers(0, nodes - 1))
    ranks = node * each + one, node * each + other
    placement = changed(placement, ranks[1], device=placement.seats[ranks[0]].device)
    (found,) = misplaced(placement, plan(nodes, each))
    assert (found.kind, found.host, found.ranks, found.grave) == ("device", f"n{node}", ranks, True)
    assert f"GPU-{node}-{one}" in found.words


@given(SIZES, st.data())
def test_devices_of_other_nodes_with_the_same_address_are_others(size, data):
    """A PCI address says nothing of the node; older torch knows nothing else."""
    placement = fleet(*size)
    for rank in range(len(placement.seats)):
        own = placement.seats[rank].device
        placement = changed(placement, rank, device=replace(own, uuid=""))
    assert misplaced(placement, plan(*size)) == []


@given(SIZES, st.data())
def test_the_rank_that_sees_too_few_devices_is_named_with_how_many(size, data):
    nodes, each = size
    rank = data.draw(st.integers(0, nodes * each - 1))
    seen = data.draw(st.integers(0, rank % each))
    placement = changed(fleet(nodes, each), rank, devices=seen, device=None)
    (found,) = misplaced(placement, plan(nodes, each))
    assert (found.kind, found.host, found.ranks, found.grave) == ("device", f"n{rank // each}", (rank,), True)
    assert f"{seen or 'no'} device" in found.words
    assert f"where {each} should be" in found.words


def test_a_rank_that_sees_others_devices_too_is_only_told_of():
    placement = fleet(1, 2)
    (found,) = misplaced(placement, plan(1, 2, device_per_rank=True))
    assert (found.kind, found.ranks, found.grave) == ("device", (0, 1), False)


@given(SIZES, st.data())
def test_the_rank_with_too_few_cores_is_named_with_those_it_has(size, data):
    nodes, each = size
    rank = data.draw(st.integers(0, nodes * each - 1))
    placement = changed(fleet(nodes, each), rank, cpus="7", cpu_count=1)
    (found,) = misplaced(placement, plan(nodes, each))
    assert (found.kind, found.host, found.ranks, found.grave) == ("cores", f"n{rank // each}", (rank,), True)
    assert "1 core to run on (7), where the layout gives 4" in found.words


@given(SIZES, st.integers(1, 3))
def test_where_nodes_have_fewer_cores_than_their_site_says_it_is_only_told(size, has):
    nodes, each = size
    placement = fleet(nodes, each, cores=has)
    found = misplaced(placement, plan(nodes, each, cores=4))
    assert crowded(placement, plan(nodes, each, cores=4))
    assert [each.grave for each in found] == [False] * nodes


def test_nodes_that_are_one_machine_are_crowded_together():
    placement = fleet(4, 1, cores=4)
    assert not crowded(placement, plan(4, 1))
    assert crowded(placement, plan(4, 1, one_machine=True))


@given(st.integers(2, 5), st.integers(2, 5))
def test_ranks_on_another_node_than_the_layout_says_are_the_launchers_doing(nodes, each):
    placement = changed(fleet(nodes, each), each, host="n0", device=device(0, 77))
    found = misplaced(placement, plan(nodes, each))
    assert {(one.kind, one.host) for one in found} == {("placement", "n0"), ("placement", "n1")}
    told = verdict(placement.with_findings(found))
    assert told.everywhere
    assert isinstance(told.error("n0"), PlacementError)
    assert misplaced(placement, plan(nodes, each, one_machine=True)) == []


def test_cores_far_from_the_device_are_told():
    placement = changed(fleet(2, 2), 3, numa=(1,))
    (found,) = misplaced(placement, plan(2, 2))
    assert (found.kind, found.host, found.ranks, found.grave) == ("cores", "n1", (3,), False)


@given(st.integers(3, 9), st.data())
def test_the_node_whose_port_is_down_or_slow_is_told(nodes, data):
    placement = fleet(nodes, 1)
    bad = data.draw(st.integers(0, nodes - 1))
    nics = (Nic("mlx5_0:1", 200.0), Nic("mlx5_1:1", 200.0), Nic(f"eno{bad}", 1.0))
    lesser = data.draw(st.sampled_from([nics[:1], (nics[0], Nic("mlx5_1:1", 100.0))]))
    hosts = [replace(host, nics=lesser if at == bad else nics) for at, host in enumerate(placement.hosts)]
    (found,) = misplaced(replace(placement, hosts=tuple(hosts)), plan(nodes, 1))
    assert (found.kind, found.host, found.grave) == ("nic", f"n{bad}", False)
    assert "mlx5_1:1" in found.words


@given(SIZES, st.data())
def test_the_verdict_blames_nodes_unless_all_are_alike(size, data):
    nodes, each = size
    bad = data.draw(st.sets(st.integers(0, nodes - 1), min_size=1))
    placement = fleet(nodes, each)
    for node in bad:
        placement = changed(placement, node * each, cpus="0", cpu_count=1)
    told = verdict(placement.with_findings(misplaced(placement, plan(nodes, each))))
    assert told == Verdict.from_line(told.to_line())
    assert set(told.refused) == {f"n{node}" for node in bad}
    assert told.ranks == tuple(sorted(node * each for node in bad))
    assert told.everywhere == (len(bad) == nodes and (nodes > 1 or each == 1))
    kind = PlacementError if told.everywhere else BadNodeError
    assert type(told.error(f"n{min(bad)}")) is kind


@pytest.mark.parametrize(("lacking", "kind"), [(4, PlacementError), (3, BadNodeError)])
def test_the_only_node_is_named_unless_all_its_ranks_are_alike(lacking, kind):
    """A torch without CUDA had one healthy node after the other excluded."""
    placement = fleet(1, 4)
    for rank in range(lacking):
        placement = changed(placement, rank, devices=0, device=None)
    told = verdict(placement.with_findings(misplaced(placement, plan(1, 4)))).error("n0")
    assert type(told) is kind
    assert ("it is so for every rank of the only node" in told.hint) == (kind is PlacementError)


@given(SIZES)
def test_what_is_fine_has_no_verdict(size):
    assert verdict(fleet(*size)) == Verdict({})


@given(SIZES)
def test_ranks_and_placements_survive_their_files(size):
    placement = fleet(*size)
    for seat, host in zip(placement.seats, placement.hosts, strict=False):
        assert from_line(line(seat, host)) == (seat, host)
    found = misplaced(changed(placement, 0, cpus="0", cpu_count=1), plan(*size))
    whole = placement.with_findings(found)
    assert Placement.from_json(whole.to_json()) == whole


# --- speed ---------------------------------------------------------------------------------------


class Fleet:
    """Nodes of which some are slow, at what they compute or at what they send.

    Who is next to whom is by chance: names and ranks of nodes are shuffled.
    """

    def __init__(self, order, each, computing=(), sending=(), noise=lambda: 1.0):
        self.seats = [
            Seat(at * each + local, local, f"n{node}", 1, "0-3", 4)
            for at, node in enumerate(order)
            for local in range(each)
        ]
        self.computing = {f"n{node}" for node in computing}
        self.sending = {f"n{node}" for node in sending}
        self.noise = noise

    def _exchange(self, one, other):
        late = {self.seats[one].host, self.seats[other].host} & self.sending
        return (0.1 if late else 0.01) * self.noise()

    def measured(self, ways):
        """What the ranks would measure; a pair has one time, which both of its ranks see."""
        drawn = {}
        timed = []
        for seat, way in zip(self.seats, ways, strict=True):
            links = []
            for number, partner in enumerate(way.partners):
                if partner is not None:
                    assert ways[partner].partners[number] == seat.rank
                    key = (number, *sorted((seat.rank, partner)))
                    links.append(drawn.setdefault(key, self._exchange(seat.rank, partner)))
            product = (0.05 if seat.host in self.computing else 0.01) * self.noise()
            timed.append(replace(seat, product_seconds=product, link_seconds=min(links, default=None)))
        return timed

    def named(self):
        """As the pre-flight finds them, by kind."""
        first = self.measured(pairing.first_ways(self.seats))
        late = laggards(first, RULE)
        if not any(late.values()):
            return {}
        second = self.measured(pairing.second_ways(self.seats, late.get("link", ())))
        again = laggards(second, RULE, fleet=first)
        both = {kind: ranks & again.get(kind, frozenset()) for kind, ranks in late.items()}
        found = slow(first, both, RULE, grave=True)
        return {kind: {one.host for one in found if one.kind == kind} for kind in {one.kind for one in found}}


@st.composite
def fleets(draw, share=4):
    """A fleet in any order, of which at most one node in ``share`` is slow at each."""
    nodes = draw(st.integers(3, 14))
    order = draw(st.permutations(range(nodes)))
    most = max(1, nodes // share)
    some = st.sets(st.sampled_from(range(nodes)), max_size=most)
    return order, draw(st.integers(1, 4)), draw(some), draw(some)


@settings(max_examples=300)
@given(fleets(), st.randoms(use_true_random=False))
def test_exactly_the_slow_nodes_are_named_wherever_they_stand(told, random):
    order, each, computing, sending = told
    found = Fleet(order, each, computing, sending, lambda: random.uniform(1.0, 1.4)).named()
    assert found.get("product", set()) == {f"n{node}" for node in computing}
    assert found.get("link", set()) == {f"n{node}" for node in sending}


@settings(max_examples=200)
@given(fleets(share=1), st.randoms(use_true_random=False))
def test_no_right_node_is_ever_named_however_many_are_slow(told, random):
    order, each, computing, sending = told
    found = Fleet(order, each, computing, sending, lambda: random.uniform(1.0, 1.4)).named()
    assert found.get("product", set()) <= {f"n{node}" for node in computing}
    assert found.get("link", set()) <= {f"n{node}" for node in sending}


@given(fleets(), st.integers(0, 50))
def test_what_was_slow_once_only_is_no_finding(told, at):
    """A disturbance of a moment: it is over when it is measured again."""
    order, each, *_ = told
    step = count()
    noise = lambda: 30.0 if next(step) == at else 1.0  # noqa: E731
    assert Fleet(order, each, noise=noise).named() == {}


@given(st.integers(2, 40), st.integers(1, 6))
def test_every_rank_is_in_as_many_rounds_and_in_each_once(nodes, each):
    seats = Fleet(range(nodes), each).seats
    ways = pairing.first_ways(seats)
    assert len({len(way.partners) for way in ways}) == 1
    met = [{partner for partner in way.partners if partner is not None} for way in ways]
    for seat, way, partners in zip(seats, ways, met, strict=True):
        assert way.together == tuple(range(seat.rank // each * each, (seat.rank // each + 1) * each))
        assert {partner % each for partner in partners} == {seat.local_rank}
        assert len(partners) == min(2, nodes - 1)
        assert all(
            ways[other].partners[at] == seat.rank
            for at, other in enumerate(way.partners)
            if other is not None
        )


def test_a_node_alone_has_nobody_to_compare_with():
    assert pairing.first_ways(Fleet(range(1), 4).seats) == [pairing.Way()] * 4


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30), st.floats(1.01, 10), st.floats(0, 1))
def test_at_least_half_are_never_slow_and_what_differs_by_less_than_the_floor_neither(times, factor, floor):
    seats = [Seat(rank, 0, f"n{rank}", 1, "0", 1, product_seconds=took) for rank, took in enumerate(times)]
    late = laggards(seats, Rule(factor, floor)).get("product", frozenset())
    assert len(late) <= len(times) // 2
    assert all(times[rank] - min(times) > floor for rank in late)


def test_words_have_the_numbers():
    seats = [
        Seat(rank, 0, f"n{rank}", 1, "0", 1, product_seconds=0.5 if rank == 2 else 0.1) for rank in range(4)
    ]
    (found,) = slow(seats, laggards(seats, RULE), RULE, grave=False)
    assert (found.host, found.ranks) == ("n2", (2,))
    assert found.words == ("rank 2 took 0.5 s for matrix products, 5.0 times the median of all ranks (0.1 s)")
