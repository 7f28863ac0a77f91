"""Step records as TensorBoard event files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hpcdl.errors import EngineError
from hpcdl.telemetry import StepRecord

_NOT_CURVES = ("step", "time", "tokens", "attempt")


def check_tensorboard() -> None:
    """Stop before anything starts if TensorBoard's writer is not installed.

    Raises:
        EngineError: it is not.
    """
    if find_spec("tensorboard") is None:
        raise EngineError(
            "metrics.tensorboard: true needs the package tensorboard, which this Python does not have",
            "install it with: pip install 'hpcdl[tensorboard]', or set metrics.tensorboard: false",
        )


class Board:
    """The event files of one run.

    Args:
        folder: where they go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def step(self, record: StepRecord) -> None:
        """Add one point to every curve; it replaces that of an earlier attempt."""
        if self._writer is None:
            # Takes a second, which only runs that want it should pay.
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

            self._writer = SummaryWriter(str(self._folder), purge_step=record.step)
        for name, value in curves(record):
            self._writer.add_scalar(name, value, record.step, walltime=record.time)
        self._writer.flush()


def curves(record: StepRecord) -> Iterator[tuple[str, float]]:
    """Every number of ``record`` that is known, by the name of its curve."""
    for name, value in asdict(record).items():
        if isinstance(value, dict):
            yield from ((f"{name}/{part}", number) for part, number in value.items())
        elif value is not None and name not in _NOT_CURVES:
            yield name, value
