"""The memory of one rank's training state: parameters, gradients and optimizer state in flat buffers.

A line (see ``buckets``) has one buffer of parameters, in the type the model computes in, and one of fp32
gradients; those of the layers are views into them. A bucket is a span of a line with what its update keeps:
the fp32 master and Adam's moments. With ZeRO-1 (Rajbhandari et al., SC 2020) a rank keeps and updates an
equal share of every bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hpcdl.engine.buckets import Chunk as Layout
from hpcdl.engine.buckets import Kind, Line, Piece, Run, chunks, lines, spans
from hpcdl.engine.groups import Groups, Peers
from hpcdl.engine.tensor.parameters import Held, Part
from hpcdl.engine.topology import Topology

_BYTES = 4  # of an fp32 gradient
_AXES = {"data": ("data",), "batch": ("data", "z")}
"""Along which axes the ranks of a group of gradients lie."""


@dataclass(frozen=True)
class Cut:
    """How large buckets and chunks are, and whether the group shares the state of a bucket among it."""

    bucket_mib: float  # of fp32 gradients
    buckets_per_chunk: int
    sharded: bool

    @property
    def elements(self) -> int:
        """Of a bucket."""
        return int(self.bucket_mib * 1024**2) // _BYTES


@dataclass(frozen=True)
class Slot:
    """One parameter of this rank with its gradient, an fp32 view of the same shape."""

    held: Held
    gradient: torch.Tensor
    replicas: int  # ranks of the world that hold the same elements

    @property
    def name(self) -> str:
        """The parameter's."""
        return self.held.name

    @property
    def parameter(self) -> torch.Tensor:
        """In the type the model computes in."""
        return self.held.parameter


@dataclass(frozen=True)
class Bucket:
    """What is updated at once, and all that the update reads, writes and keeps; flat, of one length.

    All but the parameter is fp32. Where the parameter is fp32 it is its own master.
    """

    parameter: torch.Tensor
    gradient: torch.Tensor  # summed over the whole batch, when it is updated
    master: torch.Tensor
    exp_avg: torch.Tensor  # this and the next as torch calls them
    exp_avg_sq: torch.Tensor
    updates: torch.Tensor  # so far; a scalar
    decay: bool
    runs: tuple[Run, ...]

    def round(self) -> None:
        """Bring the master into the parameter."""
        if self.parameter is not self.master:
            self.parameter.copy_(self.master)

    def kept(self, run: Run) -> dict[str, torch.Tensor]:
        """What must be kept of a run, as live views."""
        tensors = {"master": self.master, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return {name: tensor[run.at] for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Weighed:
    """Gradients without the padding, and what an element of each counts in a sum over the world."""

    gradients: list[torch.Tensor]
    weights: torch.Tensor  # fp64


@dataclass(frozen=True)
class Chunk:
    """What is reduced in one operation; ``own`` is the share of it that this rank updates."""

    kind: Kind
    peers: Peers  # whose gradients are summed
    sharded: bool  # whether ``own`` is less than the whole
    names: tuple[str, ...]  # the parameters that have a part in it
    parameter: torch.Tensor
    gradient: torch.Tensor
    own_parameter: torch.Tensor
    own_gradient: torch.Tensor
    weighed: Weighed  # of ``own_gradient``
    buckets: tuple[Bucket, ...]


class Flat:
    """The flat memory of one rank; making it moves the parameters there.

    Args:
        held: its parameters, in the order of execution.
        topology: where it sits.
        groups: whom it sums with.
        cut: the sizes.
    """

    def __init__(self, held: Sequence[Held], topology: Topology, groups: Groups, cut: Cut) -> None:
        self.device = held[0].parameter.device
        self._topology = topology
        self._cut = cut
        self._peers: dict[str, Peers] = {"data": groups.data, "batch": groups.batch}
        pieces = [Piece(one.name, one.parameter.numel(), _kind(one, topology)) for one in held]
        made = lines(pieces, {name: peers.size for name, peers in self._peers.items()})
        by_name = {one.name: one for one in held}
        slots: dict[str, Slot] = {}
        buffers: dict[Kind, tuple[torch.Tensor, torch.Tensor]] = {}
        for line in made:
            members = [by_name[piece.name] for piece in line.pieces]
            parameters = _moved(line, members)
            gradients = torch.zeros_like(parameters, dtype=torch.float32)
            buffers[line.kind] = parameters, gradients
            slots |= {one.name: self._slot(one, _view(line, gradients, one), groups.ends) for one in members}
        self.slots = [slots[one.name] for one in held]
        self._slots = slots
        self.chunks = [
            self._chunk(layout, *buffers[layout.line.kind])
            for layout in chunks(made, pieces, cut.elements, cut.buckets_per_chunk)
        ]

    def _slot(self, held: Held, gradient: torch.Tensor, ends: Peers) -> Slot:
        copies = ends.size if held.shared else 1
        return Slot(held, gradient, held.sharding.replicas(self._topology) * copies)

    def _chunk(self, layout: Layout, parameters: torch.Tensor, gradients: torch.Tensor) -> Chunk:
        line, peers = layout.line, self._peers[layout.line.kind.group]
        sharded = self._cut.sharded and peers.size > 1
        own = layout.share(peers.index, peers.size) if sharded else layout.span
        gradient = gradients[layout.span]
        own_gradient = gradient.new_zeros(own.stop - own.start) if sharded else gradient
        return Chunk(
            kind=line.kind,
            peers=peers,
            sharded=sharded,
            names=tuple(run.name for run in line.runs(layout.span)),
            parameter=parameters[layout.span],
            gradient=gradient,
            own_parameter=parameters[own],
            own_gradient=own_gradient,
            weighed=self._weighed(own_gradient, tuple(line.runs(own)), peers.size if sharded else 1),
            buckets=tuple(
                _bucket(line, span, parameters[span], own_gradient[span.start - own.start :][: _length(span)])
                for span in spans(own, line.bucket(self._cut.elements) // (peers.size if sharded else 1))
            ),
        )

    def _weighed(self, gradient: torch.Tensor, runs: Sequence[Run], shares: int) -> Weighed:
        weights = [shares / self._slots[run.name].replicas for run in runs]
        return Weighed(
            [gradient[run.at] for run in runs],
            torch.tensor(weights, dtype=torch.float64, device=gradient.device),
        )

    def parts(self) -> Iterator[Part]:
        """What must be kept of the elements this rank updates."""
        for chunk in self.chunks:
            spread = _AXES[chunk.kind.group] if chunk.sharded else ()
            for bucket in chunk.buckets:
                for run in bucket.runs:
                    yield self._part(bucket, run, spread)

    def _part(self, bucket: Bucket, run: Run, spread: tuple[str, ...]) -> Part:
        held = self._slots[run.name].held
        start = held.sharding.span(self._topology).start + run.begin
        copying = [axis for axis in held.sharding.copying if axis not in spread]
        first = not any(self._topology.index(axis) for axis in copying)
        return Part(
            held.name,
            held.sharding,
            slice(start, start + _length(run.at)),
            bucket.kept(run),
            first and (self._topology.is_first or not held.shared),
        )


def _kind(held: Held, topology: Topology) -> Kind:
    # Where nothing is cut over z the two groups are the same ranks, and fewer lines are fewer reductions.
    over_data = held.sharding.flat or topology.degree("z") == 1
    return Kind("data" if over_data else "batch", held.decay, held.shared)


def _length(span: slice) -> int:
    return int(span.stop - span.start)


def _view(line: Line, buffer: torch.Tensor, held: Held) -> torch.Tensor:
    start = line.starts[held.name]
    return buffer[start : start + held.parameter.numel()].view(held.parameter.shape)


def _moved(line: Line, members: Sequence[Held]) -> torch.Tensor:
    """The buffer that the parameters of a line lie in from now on."""
    buffer = members[0].parameter.detach().new_zeros(line.elements)
    for one in members:
        view = _view(line, buffer, one)
        view.copy_(one.parameter.detach())
        one.parameter.data = view
    return buffer


def _bucket(line: Line, span: slice, parameter: torch.Tensor, gradient: torch.Tensor) -> Bucket:
    master = parameter if parameter.dtype == torch.float32 else parameter.float()
    return Bucket(
        parameter=parameter,
        gradient=gradient,
        master=master,
        exp_avg=torch.zeros_like(master),
        exp_avg_sq=torch.zeros_like(master),
        updates=torch.zeros((), device=master.device),
        decay=line.kind.decay,
        runs=tuple(line.runs(span)),
    )
