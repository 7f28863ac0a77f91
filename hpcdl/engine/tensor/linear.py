"""The 3D-parallel matrix product of AxoNN (SC'24, arXiv 2502.08145, section V-A, Algorithm 1).

For O = I·Wᵀ, with W stored as torch does (rows are outputs), rank (x, y, z) holds

    tensor     rows split over    columns split over    replicated over
    I          batch: z           inputs: y             x
    W          outputs: x         inputs: y             -, its flat block is cut over z
    O          batch: z           outputs: x            y

    forward    W  = all-gather over z         backward   W  = all-gather over z
               O  = all-reduce over y (I·Wᵀ)             dI = all-reduce over x (dO·W)
                                                         dW = reduce-scatter over z (dOᵀ·I)

A transposed layer swaps x and y. Its input is split over x and its output over y, so normal and
transposed layers alternate and nothing is redistributed between them. W is gathered a second time
in backward, because keeping it would hold the whole block of every layer.

None of the four in backward needs to be waited for where it stands (section V-D): dW is computed while dI is
being reduced, its reduce-scatter ends with the pass, and W was gathered while the layer before was at work.

The output is replicated over the axis that summed it: every rank there computes the same with it
and gets the same dO back, so the all-reduce of forward has the identity for its backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hpcdl.engine.groups import Peers
from hpcdl.engine.tensor.later import Later
from hpcdl.engine.tensor.parameters import Deposit, Factory
from hpcdl.spec.model import Matrix


@dataclass(frozen=True)
class Layout:
    """Where the sums of one product run, and the shape of the block that z holds together.

    Each use of a matrix asks for a layout of its own, so ``deposit`` knows how many gradients it will get.
    """

    contract: Peers  # splits the inputs: forward all-reduce
    spread: Peers  # splits the outputs: backward all-reduce
    weight_S: nn.Parameter
    block: tuple[int, int]  # outputs, inputs
    deposit: Deposit  # where the gradient of the weight goes
    later: Later

    def gathered(self) -> torch.Tensor:
        """The block of the weight that z holds together."""
        return self.later.gathered(self.weight_S).view(self.block)

    def bring(self, grad_OI: torch.Tensor) -> None:
        """Hand in this rank's part of the gradient of the block."""
        self.later.scatter(grad_OI.view(-1), self.deposit.add)


class _Product(torch.autograd.Function):
    """Letters: N rows of the batch, I inputs here, O outputs here, S this rank's shard of O·I."""

    @staticmethod
    def forward(
        ctx: Any, input_NI: torch.Tensor, _: nn.Parameter, bias_O: torch.Tensor | None, layout: Layout
    ) -> torch.Tensor:
        ctx.save_for_backward(input_NI)
        ctx.layout = layout
        ctx.has_bias = bias_O is not None
        weight_OI = layout.gathered()
        if layout.contract.size == 1:
            return F.linear(input_NI, weight_OI, bias_O)
        output_NO = input_NI @ weight_OI.T
        layout.contract.all_reduce(output_NO).wait()
        return output_NO if bias_O is None else output_NO.add_(bias_O)

    @staticmethod
    def backward(ctx: Any, grad_NO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (input_NI,) = ctx.saved_tensors
        layout: Layout = ctx.layout
        grad_NI = grad_NO @ layout.gathered()
        reduced = layout.spread.all_reduce(grad_NI)
        if not layout.later.overlap.input_gradient:
            reduced.wait()
        layout.later.do(lambda: layout.bring(grad_NO.T @ input_NI))
        bias_grad_O = grad_NO.sum(0) if ctx.has_bias else None
        reduced.wait()
        return grad_NI, None, bias_grad_O, None


def product(input_BLI: torch.Tensor, bias_O: torch.Tensor | None, layout: Layout) -> torch.Tensor:
    """I·Wᵀ + b over all leading dimensions of the input."""
    rows_NI = input_BLI.reshape(-1, input_BLI.shape[-1])
    # The weight is passed for autograd to see; it comes by the layout.
    output_NO: torch.Tensor = _Product.apply(rows_NI, layout.weight_S, bias_O, layout)  # type: ignore[no-untyped-call]
    return output_NO.view(*input_BLI.shape[:-1], layout.block[0])


def named(layer: str, matrix: Matrix) -> Matrix:
    """The same matrix under the name it has in ``layer``."""
    return matrix._replace(name=f"{layer}.{matrix.name}")


def matrix_layout(
    factory: Factory, weight: nn.Parameter, shape: tuple[int, int], *, transposed: bool
) -> Layout:
    """The layout of one use of ``weight``, in full of ``shape`` (outputs, inputs), on this rank."""
    groups = factory.groups
    spread, contract = (groups.y, groups.x) if transposed else (groups.x, groups.y)
    block = (shape[0] // spread.size, shape[1] // contract.size)
    return Layout(contract, spread, weight, block, factory.used(weight), factory.later)


class Linear(nn.Module):
    """A linear layer on the x·y·z grid.

    Args:
        factory: makes this rank's part of the weight and the bias.
        matrix: the full weight; its name is the layer's, so parameters are ``NAME.weight``, ``NAME.bias``.
        std: standard deviation of the initial weight.
        transposed: swaps the roles of x and y.
        bias: whether there is one.
    """

    def __init__(self, factory: Factory, matrix: Matrix, std: float, *, transposed: bool, bias: bool) -> None:
        super().__init__()
        name, shape = matrix.name, (matrix.rows, matrix.columns)
        axes = ("y", "x") if transposed else ("x", "y")
        self.weight = factory.matrix(f"{name}.weight", shape, axes, std)
        self.layout = matrix_layout(factory, self.weight, shape, transposed=transposed)
        self.bias = factory.vector(f"{name}.bias", shape[0], axes[0], 0.0) if bias else None

    def forward(self, input_BLI: torch.Tensor) -> torch.Tensor:
        """Outputs split over x (over y if transposed)."""
        return product(input_BLI, self.bias, self.layout)
