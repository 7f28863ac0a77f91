"""What is estimated: a model, its training, and the machine as one rank sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpcdl.planner.engines import HPCDL, Attention, Engine
from hpcdl.planner.space import Candidates, Floats
from hpcdl.sites.node import NodeType
from hpcdl.sites.profile import Profile
from hpcdl.sites.site import Network
from hpcdl.spec.job import Layout, Overlap
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training
from hpcdl.units import GB, TERA, parse_bytes

# Of a site that does not say: PCI Express 3.0 x16, and 8 channels of DDR4-3200 (AMD EPYC 7763, as next to the
# A100s of Perlmutter and Polaris).
_HOST_LINK = 15.75  # GB/s in one direction
_HOST_MEMORY = 204.8  # GB/s
# Page-locked copies reach 11 to 12 of PCI Express 3's 15.75 GB/s (reports of CUDA's bandwidthTest).
_HOST_LINK_EFFICIENCY = 0.78
_HOST_MEMORY_EFFICIENCY = 0.6  # as the profile of a CPU

_ALL = Overlap()


@dataclass(frozen=True)
class Case:
    """One question to the cost model. All rates are of one rank, in FLOP/s and bytes/s.

    On a CPU the ranks of a node share its cores and its memory: a site file states figures of one slot, of
    which the node has ``devices``, so slots × figure is the node's and each rank gets the part of its cores.
    """

    model: Model
    training: Training
    node: NodeType
    network: Network
    layout: Layout
    profile: Profile
    engine: Engine = HPCDL
    overlap: Overlap = _ALL

    def tokens(self, c: Candidates) -> Floats:
        """Tokens of one microbatch on a rank."""
        count: Floats = c.microbatch * self.model.sequence / c.context
        return count

    @property
    def drops(self) -> bool:
        """Whether masks of dropout are drawn and applied."""
        return self.engine.drops or self.model.dropout > 0

    @property
    def attention(self) -> Attention:
        """The kernel; one that is never whole has no scores of which dropout could drop some."""
        return "naive" if self.model.dropout and self.engine.attention == "flash" else self.engine.attention

    @property
    def beside(self) -> Overlap:
        """What runs beside computing: asked for, and possible with this engine."""
        able = self.engine.exchange.overlap
        return Overlap(**{name: asked and getattr(able, name) for name, asked in self.overlap})

    @property
    def on_cpu(self) -> bool:
        """Whether ranks compute on cores that they share."""
        return self.node.device.kind == "cpu"

    @property
    def element_bytes(self) -> int:
        """Bytes of one weight, activation or message element."""
        return 4 if self.training.precision == "fp32" else 2

    @property
    def nominal_flops(self) -> float:
        """Peak that a rank is entitled to; what MFU is measured against."""
        nominal = self.node.nominal_flops(self.training.precision, self.layout.ranks_per_node)
        assert nominal is not None, "precision is checked before a case is made"  # noqa: S101 - for mypy
        return nominal

    @property
    def peak_flops(self) -> float:
        """Peak of a rank that nobody else disturbs."""
        peak = self.node.device.peak_tflops[self.training.precision] * TERA
        return peak * self._share

    @property
    def memory_rate(self) -> float:
        """Device memory bandwidth that streaming kernels reach."""
        return self.node.device.memory_bandwidth * GB * self._share * self.profile.memory_efficiency

    @property
    def score_rate(self) -> float:
        """Device memory bandwidth that softmax and dropout over scores in memory reach."""
        return self.memory_rate * self.profile.score_efficiency / self.profile.memory_efficiency

    @property
    def memory_bytes(self) -> float:
        """Memory that a rank may use."""
        if self.on_cpu:
            return self.host_memory_bytes
        return parse_bytes(self.node.device.memory)

    @property
    def one_memory(self) -> bool:
        """Whether what a device offloads stays in the same memory."""
        return self.on_cpu or self.node.unified_memory

    @property
    def host_memory_bytes(self) -> float:
        """A rank's part of its node's host memory."""
        return parse_bytes(self.node.host_memory) / self.layout.ranks_per_node

    @property
    def host_link(self) -> float:
        """What copies between a device and page-locked host memory reach, in one direction."""
        if self.one_memory:
            return self.memory_rate / 2  # a copy reads and writes
        return (self.node.links.host or _HOST_LINK) * GB * _HOST_LINK_EFFICIENCY

    @property
    def host_rate(self) -> float:
        """A rank's part of what the host's cores stream from its memory."""
        if self.one_memory:
            return self.memory_rate
        bandwidth = self.node.host_memory_bandwidth or _HOST_MEMORY
        return bandwidth * GB * _HOST_MEMORY_EFFICIENCY / self.layout.ranks_per_node

    @property
    def crowding(self) -> float:
        """Ranks that want one core at the same time; 1 where every rank has its own."""
        return max(1.0, self.layout.ranks_per_node / self.node.usable_cores) if self.on_cpu else 1.0

    @property
    def injection(self) -> float:
        """What a whole node reaches into the network."""
        crosses = self.network.group_nodes is not None and self.layout.nodes > self.network.group_nodes
        narrowing = self.network.oversubscription if crosses else 1.0
        return self.node.links.inter_node * GB * self.profile.inter_efficiency / narrowing

    def intra(self, inner: int, size: int) -> float:
        """What a member of a group of ``size`` devices, ``inner`` apart, reaches inside a node.

        Where a site lists links between pairs, only those to the group's other members count, which is
        why two of four directly linked A100 reach a third of what all four do (arXiv 2502.08145, §V-B).
        """
        links = self.node.links
        rate = links.intra_node
        if links.pairs and size > 1:
            groups = _nested_groups(inner, size, self.layout.ranks_per_node)
            rate = min((self._reach(member, group) for group in groups for member in group), default=rate)
        return min(rate, links.intra_node) * GB * self.profile.intra_efficiency

    def _reach(self, member: int, group: range) -> float:
        pairs = self.node.links.pairs
        names = (f"{min(member, peer)}-{max(member, peer)}" for peer in group if peer != member)
        return math.fsum(pairs.get(name, self.node.links.intra_node) for name in names)

    @property
    def _share(self) -> float:
        if not self.on_cpu:
            return 1.0
        return self.node.devices * self.layout.cores_per_rank / self.node.usable_cores


def _nested_groups(inner: int, size: int, ranks: int) -> list[range]:
    """Groups of ``size`` local ranks that lie ``inner`` apart."""
    block = inner * size
    starts = (first + offset for first in range(0, ranks - block + 1, block) for offset in range(inner))
    return [range(start, start + block, inner) for start in starts]
