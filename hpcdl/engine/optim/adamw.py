"""AdamW over fp32 master weights, whatever precision the model computes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hpcdl.errors import EngineError
from hpcdl.spec.training import Optimizer

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # torch's names


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
    updated and then rounded into them; fp32 parameters are their own master. ``fused`` is one pass
    over memory, on CPU too: 5 million weights took 3.5 ms on one core, foreach 20 ms.
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
            lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True,
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
        if gradient_scale != 1.0:
            torch._foreach_mul_([slot.gradient for slot in self._slots], gradient_scale)
        for master, slot in zip(self._masters, self._slots, strict=True):
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
        return {name: moments[name] for name in _MOMENTS if name in moments}

    @torch.no_grad()
    def load(self, state: dict[str, dict[str, torch.Tensor]]) -> None:
        """Go on from ``state``; parameters are set from their masters.

        Raises:
            EngineError: it is the state of other parameters.
        """
        for master, slot in zip(self._masters, self._slots, strict=True):
            kept = _of(slot, state)
            master.copy_(kept["master"])
            if slot.parameter is not master:
                slot.parameter.copy_(master)
            self._adamw.state[master] = {
                name: kept[name].to(master.device, copy=True) for name in _MOMENTS if name in kept
            }


def _of(slot: Slot, state: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    kept = state.get(slot.name)
    found = "nothing" if kept is None else f"shape {tuple(kept['master'].shape)}"
    if kept is None or kept["master"].shape != slot.parameter.shape:
        raise EngineError(
            f"the checkpoint holds {found} for {slot.name}, which has shape {tuple(slot.parameter.shape)}",
            "it belongs to another model; give this one a run of its own",
        )
    return kept
