"""A folder in Hugging Face layout: ``config.json`` and one or several safetensors files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hpcdl.engine.checkpoint import huggingface
from hpcdl.engine.checkpoint.huggingface import BASES, Recipe
from hpcdl.engine.checkpoint.shapes import shapes
from hpcdl.engine.checkpoint.shards import FAILURES
from hpcdl.errors import EngineError
from hpcdl.spec.model import Model

T = TypeVar("T")
CONFIG = "config.json"
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HINT = "give a folder with config.json and model.safetensors, or the checkpoint of a run"


@dataclass(frozen=True)
class Weights:
    """Weights on disk; nothing is read before it is asked for, and nothing but tensors ever is.

    Args:
        folder: where.
        model: that they are of.
        files: the file of every tensor, by its name there.
    """

    folder: Path
    model: Model
    files: Mapping[str, str]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor that the model needs and that is there, by its name in full."""
        wanted = huggingface.expected(self.model)
        found = {name: own for name in wanted if (own := self._own_name(name)) in self.files}
        return {name: self._read(own, lambda it: tuple(it.get_shape())) for name, own in found.items()}

    def made(self, recipe: Recipe) -> torch.Tensor:
        """One of our parameters, whole, in fp32."""
        return recipe.join([self._read(self._own_name(name), _values) for name in recipe.theirs])

    def _own_name(self, name: str) -> str:
        """What a tensor is called here: without the base's name if only the base was saved."""
        bare = next((name.removeprefix(base) for base in BASES if name.startswith(base)), name)
        return name if name in self.files else bare

    def _read(self, name: str, what: Callable[[Any], T]) -> T:
        path = self.folder / self.files[name]
        try:
            with safe_open(path, framework="pt") as file:
                return what(file.get_slice(name))
        except FAILURES as error:
            raise EngineError(f"{path} cannot be read: {error}", _HINT) from None


def _values(stored: Any) -> torch.Tensor:
    values: torch.Tensor = stored[:].float()
    return values


def opened(folder: Path) -> Weights:
    """The weights in a folder.

    Raises:
        EngineError: a file is missing or is not what its name says.
    """
    told = _json(folder / CONFIG)
    model = huggingface.described(str(folder / CONFIG), told)
    if (folder / _INDEX).is_file():
        return Weights(folder, model, _json(folder / _INDEX).get("weight_map", {}))
    try:
        with safe_open(folder / _WHOLE, framework="pt") as file:
            return Weights(folder, model, dict.fromkeys(file.keys(), _WHOLE))
    except FAILURES as error:
        raise EngineError(f"{folder / _WHOLE} cannot be read: {error}", _HINT) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise EngineError(f"{path} cannot be read: {error}", _HINT) from None
    return content


def write(folder: Path, model: Model, read: Callable[[str], torch.Tensor], limit: int) -> None:
    """Write weights and config.

    Args:
        folder: exists and is empty.
        model: that they are of.
        read: makes one of our parameters, whole, by its name.
        limit: a file grows no larger than so many bytes, unless a single parameter is.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    recipes = huggingface.recipes(model)
    groups = packed({name: 4 * prod(shape) for name, shape in shapes(model).items()}, limit)
    files: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = _WHOLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {name: tensor for ours in group for name, tensor in _theirs(recipes[ours], read(ours))}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, file)
    if len(groups) > 1:
        _write_json(folder / _INDEX, {"metadata": {"total_size": 4 * model.parameters}, "weight_map": files})
    _write_json(folder / CONFIG, huggingface.config(model))
    for path in folder.glob("*.safetensors"):
        path.chmod(folder.stat().st_mode & 0o666)  # the library makes private files


def packed(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in groups, in order, none larger than ``limit`` unless it is one name alone."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


def _theirs(recipe: Recipe, ours: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    parts = (part.contiguous() for part in recipe.split(ours))
    return zip(recipe.theirs, parts, strict=True)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
