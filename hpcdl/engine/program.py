"""A model of the user's own: what the function that ``model.entry`` names returns, and how it is found."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from hpcdl.errors import EngineError
from hpcdl.spec.entry import EntryModel

Sample = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Program:
    """A model as a row of layers, its loss and its data.

    Args:
        layers: functions that make the layers, in the order in which they run. Each is called on the ranks
            that hold its layer, with torch's generators seeded for it, so that every decomposition starts
            from the same weights; and once on every rank under torch's meta device, to learn shapes. A layer
            takes one tensor, or a tuple of them, whose leading dimension is the microbatch, and returns the
            same kind of thing.
        loss: of what the last layer returns and the targets, **summed** over the samples of a microbatch: the
            engine divides by the samples of the whole batch.
        data: a map-style dataset of (input, target) tensors.
        validation: the same, for ``evaluation:``.
        costs: what each layer costs, in any unit, where the layers are cut into stages; by default alike.
    """

    layers: Sequence[Callable[[], nn.Module]]
    loss: Callable[[Any, torch.Tensor], torch.Tensor]
    data: Dataset[Sample]
    validation: Dataset[Sample] | None = None
    costs: Sequence[float] | None = None


def load_program(model: EntryModel) -> Program:
    """What the function returns that ``model.entry`` names; it is called once.

    Raises:
        EngineError: it cannot be found, or returns something else or no data. What its own code raises is
            passed on.
    """
    return _called(model.model_dump_json())


@lru_cache(maxsize=1)
def _called(text: str) -> Program:
    model = EntryModel.model_validate_json(text)
    module_name, _, function_name = model.entry.partition(":")
    sys.path.insert(0, model.folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(str(error.name)):
            raise  # the module is there and misses something of its own
        raise EngineError(
            f"model.entry {model.entry}: there is no module {error.name}",
            f"Python looked in {model.folder} first; set model.folder, relative to the experiment file",
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise EngineError(
            f"model.entry {model.entry}: {module.__file__} has no function {function_name}",
            "entry is package.module:function",
        )
    program = function(**model.arguments)
    if not isinstance(program, Program):
        raise EngineError(
            f"model.entry {model.entry} returned {type(program).__name__}",
            "it must return an hpcdl.engine.program.Program",
        )
    if not len(program.data):  # type: ignore[arg-type]
        raise EngineError("the program's data is empty", "it needs at least one (input, target)")
    return program
