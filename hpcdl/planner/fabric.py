"""How long one collective takes, for every candidate at once: algorithms, nested groups and link tiers.

n ranks lie g to a node on N nodes. To gather S bytes among them, or to scatter them reduced, takes

    start + (g-1)·hop + ceil(log2 N)·network hop + (n-1)/n · S / β

a ring inside every node and recursive doubling between nodes (Thakur, Rabenseifner and Gropp 2005), with the
volume of a ring. An all-reduce is a scatter and a gather by the faster of two ways: the flat ring, or two
levels, scattered inside nodes, summed between them and gathered inside, which sends less over the network:

    start + 2·hops + 2·min((n-1)/n · S / β, (g-1)/g · S / β inside + (N-1)/n · S / β across)

What does not depend on S is a saturation: S bytes reach β·S/(S + S_half), where S_half is β times all that.
β is the bandwidth of a group that nests in others, AxoNN's equation 7 (SC'24, arXiv 2502.08145).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hpcdl.planner.case import Case
from hpcdl.planner.space import Bools, Candidates, Floats, Ints

REPLICAS = "replicas"
"""The ranks that hold the same weights, as an axis: data and the parts of a sequence together."""


class _Passage(NamedTuple):
    """One way through a group, a gather's or half an all-reduce: seconds whatever the size, and a byte."""

    hops: Floats
    ring: Floats  # a byte
    levels: Floats  # a byte


@dataclass(frozen=True)
class Fabric:
    """The time of one collective, for every candidate at once."""

    case: Case
    candidates: Candidates
    _bandwidths: dict[str, Floats] = field(default_factory=dict, compare=False)
    _passages: dict[str, _Passage] = field(default_factory=dict, compare=False)
    _insides: dict[str, Bools] = field(default_factory=dict, compare=False)

    def size(self, axis: str) -> Ints:
        """Degree along ``axis``."""
        c = self.candidates
        if axis == REPLICAS:
            return c.data * c.context
        degree: Ints = getattr(c, axis)
        return degree

    def inner(self, axis: str) -> Ints:
        """How far apart neighbours along ``axis`` sit: the product of the degrees inside it."""
        c = self.candidates
        if axis == REPLICAS:
            return c.inner("data") // c.context
        if axis == "expert":
            return c.inner("data")
        if self.case.engine.exchange.y_inside and axis in ("x", "y"):
            return np.ones_like(c.x) if axis == "y" else c.y
        return c.inner(axis)

    def bandwidth(self, axis: str) -> Floats:
        """Bytes/s of one member of the groups along ``axis``; AxoNN's equation 7.

        Inside a node what the links give; across nodes the whole node's injection, shared by as many rings as
        run through the node at once: min(ranks a node, product of the inner degrees).
        """
        if axis not in self._bandwidths:
            inner, size = self.inner(axis), self.size(axis)
            inside = self.inside(axis)
            ranks = self.case.layout.ranks_per_node
            links = self._links(np.where(inside, inner, 1), np.where(inside, size, ranks))
            self._bandwidths[axis] = np.where(inside, links, np.minimum(self._across(inner), links))
        return self._bandwidths[axis]

    def all_reduce(self, count_bytes: Floats, axis: str) -> Floats:
        """Every member has ``count_bytes`` and gets their sum."""
        way = self._passage(axis)
        return self._start(axis) + 2 * (way.hops + count_bytes * np.minimum(way.ring, way.levels))

    def gather(self, count_bytes: Floats, axis: str) -> Floats:
        """All-gather, or reduce-scatter, of ``count_bytes`` in all."""
        way = self._passage(axis)
        return self._start(axis) + way.hops + count_bytes * way.ring

    def all_to_all(self, count_bytes: Floats, axis: str) -> Floats:
        """Every member sends an equal part of its ``count_bytes`` to each; all of a node's ranks at once."""
        size, near = self.size(axis), self._near(axis)
        inside = (near - 1) / size * count_bytes / self._links(self.inner(axis), near)
        away = (size - near) / size * count_bytes / self._across(np.full_like(size, self._ranks))
        return self._start(axis) + np.where(size > 1, inside + away, 0.0)

    def send(self, count_bytes: Floats, axis: str) -> Floats:
        """One message to the neighbour along ``axis``; free where there is none."""
        profile = self.case.profile
        hop = np.where(self.inside(axis), profile.hop_latency_s, profile.network_latency_s)
        message = hop + count_bytes / self.bandwidth(axis)
        return self._start(axis) + np.where(self.size(axis) > 1, message, 0.0)

    def world(self) -> float:
        """The all-reduce of loss and gradient norm over every rank: start-up only."""
        layout, profile = self.case.layout, self.case.profile
        if layout.ranks == 1:
            return 0.0
        inside = (layout.ranks_per_node - 1) * profile.hop_latency_s
        across = np.ceil(np.log2(layout.nodes)) * profile.network_latency_s
        return float(profile.collective_latency_s + 2 * (inside + across))

    def inside(self, axis: str) -> Bools:
        """Whether the groups along ``axis`` stay in a node."""
        if axis not in self._insides:
            nested: Bools = self._ranks % (self.inner(axis) * self.size(axis)) == 0
            self._insides[axis] = nested | (self.case.layout.nodes == 1)
        return self._insides[axis]

    @property
    def _ranks(self) -> int:
        return self.case.layout.ranks_per_node

    def _start(self, axis: str) -> Floats:
        """Start-up of a collective; none where there is nobody to talk to."""
        return np.where(self.size(axis) > 1, self.case.profile.collective_latency_s, 0.0)

    def _passage(self, axis: str) -> _Passage:
        if axis not in self._passages:
            self._passages[axis] = self._way(axis)
        return self._passages[axis]

    def _way(self, axis: str) -> _Passage:
        size, near, inner, profile = self.size(axis), self._near(axis), self.inner(axis), self.case.profile
        nodes = size // near
        hops = (near - 1) * profile.hop_latency_s + np.ceil(np.log2(nodes)) * profile.network_latency_s
        links = self._links(inner, near)
        inside = (near - 1) / near / links
        across = (nodes - 1) / size / np.minimum(self._across(inner * near), links)
        return _Passage(hops, (size - 1) / size / self.bandwidth(axis), inside + across)

    def _near(self, axis: str) -> Ints:
        """Members of a group to a node; 1 where they do not lie evenly."""
        size, inner = self.size(axis), self.inner(axis)
        most = np.maximum(1, self._ranks // inner)
        even = (size % most == 0) & (self._ranks % inner == 0)
        return np.where(self.inside(axis), size, np.where(even, most, 1))

    def _across(self, sharing: Ints) -> Floats:
        """Injection of a node that ``sharing`` rings share, at most one a rank; one node needs none."""
        injection = self.case.injection if self.case.layout.nodes > 1 else np.inf
        return injection / np.minimum(self._ranks, sharing)

    def _links(self, inner: Ints, size: Ints) -> Floats:
        most = int(size.max(initial=0)) + 1
        keys, positions = np.unique(inner * most + size, return_inverse=True)
        rates = [self.case.intra(*divmod(int(key), most)) for key in keys]
        return np.array(rates)[positions]
