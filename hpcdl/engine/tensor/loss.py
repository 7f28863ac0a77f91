"""Cross-entropy of logits whose vocabulary is split over x (Shoeybi et al., arXiv 1909.08053).

Only three numbers a token cross the group: the largest logit, the sum of exponentials and the
target's logit. A negative target is ignored: no loss, no gradient. Letters: N tokens, V the part
of the vocabulary here.
"""

from __future__ import annotations

from typing import Any

import torch

from hpcdl.engine.groups import Peers
from hpcdl.engine.transport.base import Reduction


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor, peers: Peers) -> torch.Tensor:
        width = logits_NV.shape[1]
        largest_N = logits_NV.amax(1).float()
        peers.all_reduce(largest_N, Reduction.MAX).wait()
        shifted_NV = logits_NV.float() - largest_N.unsqueeze(1)
        columns_N = targets_N - peers.index * width
        foreign_N = (columns_N < 0) | (columns_N >= width)
        columns_N1 = columns_N.masked_fill(foreign_N, 0).unsqueeze(1)
        target_N = shifted_NV.gather(1, columns_N1).squeeze(1).masked_fill(foreign_N, 0)
        softmax_NV = shifted_NV.exp_()
        sums = torch.stack([softmax_NV.sum(1), target_N])
        peers.all_reduce(sums).wait()
        ignored_N = targets_N < 0
        # Divided by infinity the row of an ignored target is zero, and so is its gradient.
        softmax_NV /= sums[0].masked_fill(ignored_N, torch.inf).unsqueeze(1)
        ctx.save_for_backward(softmax_NV, columns_N1, foreign_N)
        ctx.dtype = logits_NV.dtype
        return (sums[0].log() - sums[1]).masked_fill(ignored_N, 0).sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        softmax_NV, columns_N1, foreign_N = ctx.saved_tensors
        one_N1 = (~foreign_N).to(softmax_NV.dtype).unsqueeze(1)
        grad_NV = softmax_NV.scatter_add(1, columns_N1, -one_N1).mul_(grad)
        return grad_NV.to(ctx.dtype), None, None


def cross_entropy(logits_BLV: torch.Tensor, targets_BL: torch.Tensor, peers: Peers) -> torch.Tensor:
    """Sum over targets of -log p(target), in fp32; the same on every rank of ``peers``.

    Targets below 0 are ignored.
    """
    loss: torch.Tensor = _CrossEntropy.apply(logits_BLV.flatten(0, 1), targets_BL.flatten(), peers)  # type: ignore[no-untyped-call]
    return loss
