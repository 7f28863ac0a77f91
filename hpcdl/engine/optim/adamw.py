"""AdamW over fp32 master weights, whatever precision the model computes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hpcdl.spec.training import Optimizer


@dataclass(frozen=True)
class Slot:
    """One parameter of this rank as the optimizer sees it.

    ``gradient`` has the parameter's shape, is fp32, and holds the mean over the whole batch.
    """

    name: str
    parameter: torch.Tensor
    gradient: torch.Tensor
    replicas: int  # ranks of the world that hold the same elements
    decay: bool  # whether weight decay applies: matrices yes, norms and biases no


class AdamW:
    """Decoupled weight decay Adam (Loshchilov and Hutter, 2019).

    The update is torch's own. Parameters in a lower precision get an fp32 master copy, which is
    updated and then rounded into them; fp32 parameters are their own master.
    """

    def __init__(self, slots: Sequence[Slot], settings: Optimizer) -> None:
        self._slots = slots
        self._masters = [
            slot.parameter if slot.parameter.dtype == torch.float32 else slot.parameter.detach().float()
            for slot in slots
        ]
        groups = [
            {"params": self._having(decay=True), "weight_decay": settings.weight_decay},
            {"params": self._having(decay=False), "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.lr, betas=settings.betas, eps=settings.eps, foreach=True,
        )  # fmt: skip

    def _having(self, *, decay: bool) -> list[torch.Tensor]:
        return [m for m, slot in zip(self._masters, self._slots, strict=True) if slot.decay == decay]

    @torch.no_grad()
    def step(self, learning_rate: float, gradient_scale: float) -> None:
        """Update every parameter.

        Args:
            learning_rate: of this step.
            gradient_scale: what gradients are multiplied with first (clipping).
        """
        for master, slot in zip(self._masters, self._slots, strict=True):
            if gradient_scale != 1.0:
                slot.gradient.mul_(gradient_scale)
            master.grad = slot.gradient
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        for master, slot in zip(self._masters, self._slots, strict=True):
            master.grad = None
            if slot.parameter is not master:
                slot.parameter.copy_(master)

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """What must be kept to go on: by slot name, the master weight and Adam's moments."""
        return {
            slot.name: {"master": master.detach()} | self._moments(master)
            for slot, master in zip(self._slots, self._masters, strict=True)
        }

    def _moments(self, master: torch.Tensor) -> dict[str, Any]:
        moments: dict[str, Any] = self._adamw.state.get(master, {})
        return {name: moments[name] for name in ("step", "exp_avg", "exp_avg_sq") if name in moments}

    @torch.no_grad()
    def load(self, state: dict[str, dict[str, torch.Tensor]]) -> None:
        """Go on from ``state``; parameters are set from their masters."""
        for master, slot in zip(self._masters, self._slots, strict=True):
            kept = dict(state[slot.name])
            master.copy_(kept.pop("master"))
            if slot.parameter is not master:
                slot.parameter.copy_(master)
            # Adam's step count stays on the CPU, where torch's foreach kernels want it.
            self._adamw.state[master] = {
                name: value.clone() if name == "step" else value.to(master.device, copy=True)
                for name, value in kept.items()
            }
