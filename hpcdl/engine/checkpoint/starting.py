"""Weights to start from: those of Hugging Face, or of another run's checkpoint. Moments start anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from hpcdl.engine.checkpoint import folder as layout
from hpcdl.engine.checkpoint import huggingface
from hpcdl.engine.checkpoint.choosing import Jury, read_manifest
from hpcdl.engine.checkpoint.manifest import MANIFEST
from hpcdl.engine.checkpoint.restoring import fill, targets_of
from hpcdl.engine.checkpoint.shapes import refuse_other_meaning, refuse_other_model, shapes
from hpcdl.engine.tensor.parameters import Part
from hpcdl.engine.topology import Topology
from hpcdl.errors import EngineError
from hpcdl.spec.model import Model

MASTER = "master"


def start_from(path: Path, model: Model, parts: Sequence[Part], topology: Topology, jury: Jury) -> None:
    """Fill the masters of ``parts``, those of one rank; all ranks start together.

    Raises:
        EngineError: there are no weights at ``path``, or those of another model, or they are damaged.
    """
    if (path / MANIFEST).is_file():
        _from_checkpoint(path, model, parts, topology, jury)
    elif (path / layout.CONFIG).is_file():
        _from_folder(path, model, parts, topology)
    else:
        raise EngineError(
            f"checkpoint.start {path} holds no weights: there is neither {MANIFEST} nor {layout.CONFIG}",
            "give RUN/checkpoints/STEP of another run, or a folder in Hugging Face layout",
        )


def _from_checkpoint(path: Path, model: Model, parts: Sequence[Part], topology: Topology, jury: Jury) -> None:
    damage = jury.judge(path)
    if damage is not None:
        raise EngineError(
            f"checkpoint.start {path} is damaged: {damage.file} {damage.reason}",
            "give another checkpoint of that run",
        )
    manifest = read_manifest(path)
    refuse_other_model(str(path), manifest.shapes(), shapes(model))
    refuse_other_meaning(str(path), manifest.model, model)
    fill(path, manifest, targets_of(parts, topology, kinds=[MASTER]))


@torch.no_grad()
def _from_folder(path: Path, model: Model, parts: Sequence[Part], topology: Topology) -> None:
    weights = layout.opened(path)
    refuse_other_model(str(path), weights.shapes(), huggingface.expected(model))
    refuse_other_meaning(str(path), weights.model, model)
    recipes = huggingface.recipes(model)
    for part in parts:
        block = weights.made(recipes[part.name])[part.sharding.block(topology)]
        part.tensors[MASTER].copy_(block.reshape(-1)[part.span])
