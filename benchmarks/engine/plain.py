"""The same GPT in plain torch, for the peers: modules, their initial weights, batches of random tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor

from hpcdl.engine.tensor.initial import STD, normal_shard, residual_std
from hpcdl.engine.tensor.sharding import Sharding
from hpcdl.engine.topology import Topology
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model

SEED = 0
_ONE = Topology(Decomposition(), 0)


def _matrix(name: str, rows: int, columns: int, std: float) -> torch.Tensor:
    sharding = Sharding((rows, columns), (None, None), flat=False)
    return normal_shard(SEED, name, std, sharding, _ONE).view(rows, columns)


def _linear(name: str, rows: int, columns: int, std: float) -> nn.Linear:
    layer = nn.Linear(columns, rows)
    with torch.no_grad():
        layer.weight.copy_(_matrix(f"{name}.weight", rows, columns, std))
        layer.bias.zero_()
    return layer


class Block(nn.Module):
    """One layer, fused QKV ordered by head as the engine's."""

    def __init__(self, index: int, model: Model, heads: int | None = None) -> None:
        super().__init__()
        h, name, narrow = model.hidden, f"layers.{index}", residual_std(model.layers)
        self.heads = heads or model.heads  # on this rank
        self.attention_norm, self.mlp_norm = nn.LayerNorm(h), nn.LayerNorm(h)
        self.qkv = _linear(f"{name}.attention.qkv", 3 * h, h, STD)
        self.out = _linear(f"{name}.attention.out", h, h, narrow)
        self.up = _linear(f"{name}.mlp.up", model.ffn, h, STD)
        self.down = _linear(f"{name}.mlp.down", h, model.ffn, narrow)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        batch, length, _ = stream.shape
        fused = self.qkv(self.attention_norm(stream)).view(batch, length, self.heads, 3, -1)
        query, key, value = (part.squeeze(3).transpose(1, 2) for part in fused.split(1, dim=3))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        stream = stream + self.out(mixed.transpose(1, 2).flatten(2))
        return stream + self.down(F.gelu(self.up(self.mlp_norm(stream)), approximate="tanh"))


class Begin(nn.Module):
    """Token and position embedding."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.tokens = nn.Embedding(model.vocab, model.hidden)
        self.positions = nn.Parameter(_matrix("embedding.positions", model.sequence, model.hidden, STD))
        with torch.no_grad():
            self.tokens.weight.copy_(_matrix("embedding.tokens", model.vocab, model.hidden, STD))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.tokens(tokens) + self.positions


class End(nn.Module):
    """Final norm and LM head."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(model.hidden)
        self.head = nn.Linear(model.hidden, model.vocab, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(_matrix("head.weight", model.vocab, model.hidden, STD))

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(stream))


def gpt(model: Model) -> nn.Sequential:
    """The whole model; cut it where you like."""
    return nn.Sequential(Begin(model), *(Block(i, model) for i in range(model.layers)), End(model))


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def batch(model: Model, rows: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of one step, the same on every rank."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, model.vocab, (rows, model.sequence + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def groups(parameters: Iterable[torch.Tensor]) -> list[dict[str, object]]:
    """Matrices decay, vectors do not; DTensors and tensors cannot share a fused update."""
    kinds: dict[tuple[bool, bool], list[torch.Tensor]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.ndim >= 2, isinstance(parameter, DTensor)), []).append(parameter)
    return [{"params": some, "weight_decay": 0.1 * decays} for (decays, _), some in kinds.items()]


SETTINGS = dict(lr=1e-3, betas=(0.9, 0.95), fused=True)


def optimizer(parameters: Iterable[torch.Tensor]) -> torch.optim.AdamW:
    """What the engine uses: fused AdamW."""
    return torch.optim.AdamW(groups(parameters), **SETTINGS)


def step_of(model: nn.Module, shape: Model, rows: int) -> Callable[[int], float]:
    """One step of ``model``, of that ``shape``, on a whole batch; answers its loss."""
    update = optimizer(model.parameters())

    def step(number: int) -> float:
        inputs, targets = batch(shape, rows, number)
        loss = loss_of(model(inputs), targets)
        loss.backward()
        update.step()
        update.zero_grad(set_to_none=True)
        return loss.item()

    return step
