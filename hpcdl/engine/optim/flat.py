"""The memory of one rank's training state: parameters, gradients and optimizer state in flat buffers.

A line (see ``buckets``) has one buffer of parameters, in the type the model computes in, and one of fp32
gradients; those of the layers are views into them. A bucket is a span of a line with what its update keeps:
the fp32 master and Adam's moments. With ZeRO-1 (Rajbhandari et al., SC 2020) a rank keeps and updates an
equal share of every bucket.

Where memory is to be saved (``Thrift``), gradients have the type the model computes in, masters and moments
lie in the memory of the host, and matrices with their gradients may do so too; a parameter that is pruned has
its kept elements only in the buffers: those of its line are then a copy, which ``Chunk.expand`` brings home
to the parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hpcdl.engine.buckets import Chunk as Layout
from hpcdl.engine.buckets import Kind, Line, Piece, Run, chunks, lines, spans
from hpcdl.engine.groups import Groups, Peers
from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.optim.bucket import KINDS, Bucket, Chunk, Pruned, Slot, Weighed
from hpcdl.engine.sparse.kept import Kept
from hpcdl.engine.tensor.parameters import Held, Part
from hpcdl.engine.topology import Topology

SLOTS = 2
"""Buckets that are under way at once where state lies on the host: each is half of what is asked for."""

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
class Thrift:
    """How memory is saved; nothing of it by default.

    Attributes:
        host: where masters and moments lie; None: where the parameters do.
        kept: of the parameters that are pruned, by name, what is left.
        matrices: whether matrices and their gradients lie on the host too.
        pruned: whether any rank has such; all must have gradients of the same type.
    """

    host: HostMemory | None = None
    kept: Mapping[str, Kept] = field(default_factory=dict)
    matrices: bool = False
    pruned: bool = False

    @property
    def lean(self) -> bool:
        """Whether gradients have the type that the model computes in, instead of fp32."""
        return self.host is not None or self.pruned

    def bucket(self, limit: int) -> int:
        """Elements that are updated at once, where a bucket is to have ``limit``."""
        return limit if self.host is None else limit // SLOTS

    def elements(self, held: Held) -> int:
        """Of a parameter, those that are trained."""
        kept = self.kept.get(held.name)
        return held.parameter.numel() if kept is None else kept.count


class Flat:
    """The flat memory of one rank; making it moves the parameters there.

    Args:
        held: its parameters, in the order of execution.
        topology: where it sits.
        groups: whom it sums with.
        cut: the sizes.
        thrift: how memory is saved.
    """

    def __init__(
        self, held: Sequence[Held], topology: Topology, groups: Groups, cut: Cut, thrift: Thrift | None = None
    ) -> None:
        self.thrift = thrift or Thrift()
        host = self.thrift.host
        self.device = held[0].parameter.device if host is None else host.device
        self._topology = topology
        self._cut = cut
        self._peers: dict[str, Peers] = {"data": groups.data, "batch": groups.batch}
        pieces = [Piece(one.name, self.thrift.elements(one), self._kind(one)) for one in held]
        made = lines(pieces, {name: peers.size for name, peers in self._peers.items()})
        by_name = {one.name: one for one in held}
        # Each where its parameter lies, which is where gradients are compressed.
        self._kept = {
            name: Kept(kept.index.to(by_name[name].parameter.device), kept.elements)
            for name, kept in self.thrift.kept.items()
            if name in by_name
        }
        slots: dict[str, Slot] = {}
        buffers: dict[Kind, tuple[torch.Tensor, torch.Tensor]] = {}
        for line in made:
            members = [by_name[piece.name] for piece in line.pieces]
            parameters = self._moved(line, members)
            dtype = parameters.dtype if self.thrift.lean else torch.float32
            gradients = self._zeros(line.kind, line.elements, dtype)
            buffers[line.kind] = parameters, gradients
            slots |= {
                one.name: self._slot(one, self._view(line, gradients, one), groups.ends) for one in members
            }
        self.slots = [slots[one.name] for one in held]
        self._slots = slots
        self.chunks = [
            self._chunk(layout, *buffers[layout.line.kind])
            for layout in chunks(made, pieces, cut.elements, cut.buckets_per_chunk)
        ]
        self._places: dict[str, list[tuple[Bucket, Run]]] = {}
        for bucket in self.buckets:
            for run in bucket.runs:
                self._places.setdefault(run.name, []).append((bucket, run))

    def _kind(self, held: Held) -> Kind:
        # Where nothing is cut over z the two groups are the same ranks, and fewer lines are fewer reductions.
        over_data = held.sharding.flat or self._topology.degree("z") == 1
        on_host = self.thrift.matrices and held.sharding.flat
        return Kind("data" if over_data else "batch", held.decay, held.shared, on_host)

    def _zeros(self, kind: Kind, elements: int, dtype: torch.dtype) -> torch.Tensor:
        """Room for parameters or gradients of one kind."""
        if kind.on_host:
            assert self.thrift.host is not None  # noqa: S101 - for mypy
            return self.thrift.host.empty((elements,), dtype).zero_()
        return torch.zeros(elements, dtype=dtype, device=self.device)

    def _slot(self, held: Held, gradient: torch.Tensor, ends: Peers) -> Slot:
        copies = ends.size if held.shared else 1
        replicas = held.sharding.replicas(self._topology) * copies
        return Slot(held, gradient, replicas, self._kept.get(held.name), self._kind(held).on_host)

    def _moved(self, line: Line, members: Sequence[Held]) -> torch.Tensor:
        """The buffer that the parameters of a line lie in from now on, or have what is kept of them in."""
        buffer = self._zeros(line.kind, line.elements, members[0].parameter.dtype)
        for one in members:
            view, kept = self._view(line, buffer, one), self._kept.get(one.name)
            values = one.parameter.detach()
            view.copy_(values if kept is None else kept.compress(values))
            one.parameter.data = view
            if kept is not None:
                whole = self._zeros(line.kind, values.numel(), values.dtype)
                kept.expand(whole, view, 0)
                one.parameter.data = whole.view(values.shape)
        return buffer

    def _view(self, line: Line, buffer: torch.Tensor, held: Held) -> torch.Tensor:
        start, kept = line.starts[held.name], self.thrift.kept.get(held.name)
        part = buffer[start : start + self.thrift.elements(held)]
        return part.view(held.parameter.shape) if kept is None else part

    def _chunk(self, layout: Layout, parameters: torch.Tensor, gradients: torch.Tensor) -> Chunk:
        line, peers = layout.line, self._peers[layout.line.kind.group]
        sharded = self._cut.sharded and peers.size > 1
        own = layout.share(peers.index, peers.size) if sharded else layout.span
        gradient = gradients[layout.span]
        own_gradient = self._zeros(line.kind, _length(own), gradient.dtype) if sharded else gradient
        limit = self.thrift.bucket(self._cut.elements)
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
                self._bucket(
                    line, span, parameters[span], own_gradient[span.start - own.start :][: _length(span)]
                )
                for span in spans(own, line.bucket(limit) // (peers.size if sharded else 1))
            ),
            pruned=tuple(self._pruned(line.runs(layout.span))),
        )

    def _bucket(self, line: Line, span: slice, parameter: torch.Tensor, gradient: torch.Tensor) -> Bucket:
        host = self.thrift.host
        at_home = host is None or line.kind.on_host
        if at_home and parameter.dtype == torch.float32:
            master = parameter
        else:
            master = parameter.float() if host is None else host.copy(parameter, torch.float32)
        return Bucket(
            parameter=parameter,
            gradient=gradient,
            master=master,
            exp_avg=torch.zeros_like(master) if host is None else host.zeros(len(master)),
            exp_avg_sq=torch.zeros_like(master) if host is None else host.zeros(len(master)),
            updates=master.new_zeros(()) if host is None else host.zeros(),
            decay=line.kind.decay,
            runs=tuple(line.runs(span)),
        )

    def _pruned(self, runs: Iterable[Run]) -> Iterator[Pruned]:
        for run in runs:
            if (kept := self._kept.get(run.name)) is not None:
                yield Pruned(self._slots[run.name].parameter.data, kept, run)

    def _weighed(self, gradient: torch.Tensor, runs: Sequence[Run], shares: int) -> Weighed:
        weights = [shares / self._slots[run.name].replicas for run in runs]
        return Weighed(
            [gradient[run.at] for run in runs],
            torch.tensor(weights, dtype=torch.float64, device=gradient.device),
        )

    @property
    def buckets(self) -> list[Bucket]:
        """All that this rank updates, in that order."""
        return [bucket for chunk in self.chunks for bucket in chunk.buckets]

    def settle(self) -> None:
        """Return when what the last update wrote can be read."""
        if self.thrift.host is not None:
            self.thrift.host.settle()

    def places(self, name: str) -> Sequence[tuple[Bucket, Run]]:
        """Where the elements of a parameter are that this rank updates."""
        return self._places.get(name, ())

    def elements(self, name: str) -> int:
        """Of a parameter, those that are trained."""
        return self.thrift.elements(self._slots[name].held)

    def peers(self, name: str) -> Peers | None:
        """Who shares the state of a parameter; None: this rank keeps all of what it holds."""
        shared = (chunk for chunk in self.chunks if chunk.sharded and name in chunk.names)
        return next((chunk.peers for chunk in shared), None)

    def parts(self) -> Iterator[Part]:
        """What must be kept of the elements this rank updates."""
        self.settle()
        for chunk in self.chunks:
            spread = _AXES[chunk.kind.group] if chunk.sharded else ()
            for bucket in chunk.buckets:
                for run in bucket.runs:
                    yield self._part(run, bucket.kept(run), spread)
        for slot in self.slots:
            if slot.kept is not None and not slot.kept.count:  # it lies in no bucket
                nothing = {kind: slot.gradient.float() for kind in KINDS}
                yield self._part(Run(slot.name, 0, slice(0, 0)), nothing, ())

    def _part(self, run: Run, tensors: dict[str, torch.Tensor], spread: tuple[str, ...]) -> Part:
        held, kept = self._slots[run.name].held, self.thrift.kept.get(run.name)
        stop = run.begin + _length(run.at)
        span = slice(run.begin, stop) if kept is None else kept.span(run.begin, stop)
        start = held.sharding.span(self._topology).start
        return Part(
            held.name,
            held.sharding,
            slice(start + span.start, start + span.stop),
            tensors,
            held.is_first(self._topology, spread),
            None if kept is None else kept.index[run.begin : stop] - span.start,
        )


def _length(span: slice) -> int:
    return int(span.stop - span.start)
