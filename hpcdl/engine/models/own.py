"""A program's layers as what one rank of a pipeline computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hpcdl.engine.groups import Groups
from hpcdl.engine.program import Program
from hpcdl.engine.tensor.dropout import Rows
from hpcdl.engine.tensor.later import Later
from hpcdl.engine.tensor.parameters import Deposit, Held, Numerics
from hpcdl.engine.tensor.sharding import Sharding
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.packet import Field, Signature
from hpcdl.errors import EngineError
from hpcdl.spec.partition import cut

_SPREAD = 1_000_003  # keeps the seeds of neighbouring layers and steps apart


class OwnChunk(nn.Module):
    """The layers of one virtual stage, with the loss on the last.

    Args:
        layers: in the order in which they run.
        loss: of the program, on the last virtual stage.
        seed: of what its layers draw while they train; the same for a microbatch whatever ran before.
    """

    def __init__(self, layers: Sequence[nn.Module], loss: Any, seed: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._loss = loss
        self._seed = seed

    def forward(self, incoming: Any, targets: torch.Tensor | None = None, rows: Rows | None = None) -> Any:
        """Through every layer, to what the next stage gets or to the summed loss."""
        self.train(rows is not None)
        if rows is not None:
            torch.manual_seed(self._seed + _SPREAD * (rows.step * _SPREAD + rows.first))
        value = incoming
        for layer in self.layers:
            value = layer(value)
        return value if self._loss is None else self._loss(value, targets)


class OwnModel(nn.Module):
    """What one rank computes of a program; the counterpart of ``StageModel``.

    ``held`` lists its parameters in the order of execution; ``shapes`` has those of the whole program.
    """

    def __init__(self, program: Program, topology: Topology, groups: Groups, numerics: Numerics) -> None:
        super().__init__()
        decomposition = topology.decomposition
        stages = decomposition.pipeline * decomposition.interleave
        runs = _runs(program, stages)
        self.signatures: Sequence[Signature]
        self.signatures, self.shapes = _rehearse(program, runs, numerics)
        self.chunks = nn.ModuleList()
        held: list[Held] = []
        for stage in range(topology.stage, stages, decomposition.pipeline):
            layers = {
                index: _placed(_made(program, index, numerics), index, numerics) for index in runs[stage]
            }
            held += [one for index, layer in layers.items() for one in _held(index, layer)]
            loss = program.loss if stage == stages - 1 else None
            self.chunks.append(OwnChunk([*layers.values()], loss, numerics.seed + stage))
        if not held:
            raise EngineError(
                f"pipeline stage {topology.stage} of the program has nothing to learn",
                "lower pipeline, put layers without parameters into the next ones, or set Program.costs",
            )
        self.held = tuple(held)
        self.later = Later(groups, numerics.overlap)
        self.device = numerics.device


def _runs(program: Program, stages: int) -> tuple[range, ...]:
    costs = program.costs or [1.0] * len(program.layers)
    if len(costs) != len(program.layers):
        raise EngineError(
            f"the program gives {len(costs)} costs for {len(program.layers)} layers",
            "give one a layer, or none",
        )
    try:
        return cut(costs, stages)
    except ValueError as error:
        raise EngineError(
            f"the program's {error}", "lower pipeline × interleave, or cut the model into more layers"
        ) from None


def _made(program: Program, index: int, numerics: Numerics) -> nn.Module:
    """One layer as its function makes it; torch's generators depend on the seed and its place only."""
    if isinstance(program.layers[index], nn.Module):
        raise EngineError(
            f"layer {index} of the program is a module",
            "give a function that makes it: a rank makes the layers of its own stages only",
        )
    with torch.random.fork_rng():
        torch.manual_seed(numerics.seed + _SPREAD * (index + 1))
        layer = program.layers[index]()
    for module in layer.modules():
        if isinstance(module, _BatchNorm):
            raise EngineError(
                f"layer {index} of the program holds {type(module).__name__}, whose statistics depend on how "
                "the batch is cut",
                "use GroupNorm or LayerNorm",
            )
    return layer


def _placed(layer: nn.Module, index: int, numerics: Numerics) -> nn.Module:
    """``layer`` where it computes, in the type it computes in."""
    if any(parameter.is_meta for parameter in layer.parameters()):
        raise EngineError(
            f"layer {index} of the program has parameters without values",
            "make its module inside of its function, which is called more than once",
        )
    return layer.to(numerics.device, numerics.dtype)


def _held(index: int, layer: nn.Module) -> Iterator[Held]:
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            sharding = _whole(parameter.shape)
            deposit = Deposit(parameter, by_autograd=True)
            yield Held(f"layers.{index}.{name}", parameter, deposit, sharding, shared=False)


def _whole(shape: torch.Size) -> Sharding:
    """Every rank of a stage holds all of it; what has two dimensions or more counts as a matrix."""
    if len(shape) < 2:
        return Sharding((shape.numel(),), (None,), flat=False)
    return Sharding((shape[0], shape[1:].numel()), (None, None), flat=False)


def _rehearse(
    program: Program, runs: tuple[range, ...], numerics: Numerics
) -> tuple[tuple[Signature, ...], dict[str, tuple[int, ...]]]:
    """What enters each virtual stage, and the shape of every parameter, from a forward without numbers."""
    value: Any = program.data[0][0].unsqueeze(0).to("meta")
    if value.is_floating_point():
        value = value.to(numerics.dtype)
    signatures: list[Signature] = []
    shapes: dict[str, tuple[int, ...]] = {}
    owners: dict[nn.Parameter, int] = {}
    for run in runs:
        signatures.append(_signature(value))
        for index in run:
            with torch.device("meta"):
                layer = _made(program, index, numerics)
            _own(owners, layer, index)
            _own(owners, layer.to("meta", numerics.dtype), index)
            shapes |= {one.name: one.sharding.shape for one in _held(index, layer)}
            value = _through(layer, index, value)
    return tuple(signatures), shapes


def _own(owners: dict[nn.Parameter, int], layer: nn.Module, index: int) -> None:
    """Note whose the parameters of a layer are; a parameter is found by its identity."""
    for name, parameter in layer.named_parameters():
        owner = owners.setdefault(parameter, index)
        if owner != index:
            raise EngineError(
                f"layers {owner} and {index} of the program share the parameter {name}",
                "give each its own: they may be on different ranks",
            )


def _through(layer: nn.Module, index: int, value: Any) -> Any:
    try:
        return layer(value)
    except (RuntimeError, TypeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(
            f"layer {index} of the program cannot take what comes before it: {why}",
            "shapes are found by a forward on torch's meta device with one sample of the data",
        ) from error


def _signature(value: Any) -> Signature:
    tensors = (value,) if isinstance(value, torch.Tensor) else tuple(value)
    return tuple(Field(tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors)
