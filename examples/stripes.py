"""A model of one's own: a small vision transformer that tells the direction of stripes in noise.

``examples/vision.yaml`` names ``stripes:program``; hpcdl calls it on every rank.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from hpcdl.engine.program import Program

SIDE = 16
DIRECTIONS = 8


class Stripes(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images of SIDE × SIDE pixels with stripes in one of DIRECTIONS directions; made when asked for."""

    def __init__(self, images: int, first: int = 0) -> None:
        self._images = images
        self._first = first

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = torch.Generator().manual_seed(self._first + index)
        direction = int(torch.randint(DIRECTIONS, (), generator=draw))
        phase, pitch, *_ = torch.rand(2, generator=draw).tolist()
        angle = math.pi * direction / DIRECTIONS
        rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        along = columns * math.cos(angle) + rows * math.sin(angle)
        waves = torch.sin(along * (0.8 + 0.8 * pitch) + 2 * math.pi * phase)
        image = waves + 0.7 * torch.randn(SIDE, SIDE, generator=draw)
        return image.unsqueeze(0), torch.tensor(direction)


class Patches(nn.Module):
    """The image in patches, each a vector, with learned positions."""

    def __init__(self, width: int, patch: int = 4) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((SIDE // patch) ** 2, width))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.cut(images).flatten(2).transpose(1, 2) + self.positions


class Classify(nn.Module):
    """The mean over patches, and a score for each direction."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, DIRECTIONS)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.scores(self.norm(patches.mean(1)))


def program(width: int = 64, blocks: int = 4, heads: int = 4) -> Program:
    """The transformer as a row of layers: each function makes one, on the ranks that hold it."""

    def block() -> nn.Module:
        return nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )

    return Program(
        layers=[lambda: Patches(width), *[block] * blocks, lambda: Classify(width)],
        loss=lambda scores, directions: F.cross_entropy(scores.float(), directions, reduction="sum"),
        data=Stripes(4096),
        validation=Stripes(512, first=1_000_000),
    )
