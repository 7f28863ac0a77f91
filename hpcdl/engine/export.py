"""``python -m hpcdl.engine.export RUN_FOLDER OUT [--step N]``: a checkpoint in Hugging Face layout."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch

from hpcdl.engine.checkpoint import folder as layout
from hpcdl.engine.checkpoint.choosing import inspect, read_manifest
from hpcdl.engine.checkpoint.manifest import Entry, Manifest, complete
from hpcdl.engine.checkpoint.restoring import Target, fill
from hpcdl.engine.checkpoint.shapes import shapes
from hpcdl.engine.checkpoint.shards import FAILURES
from hpcdl.engine.checkpoint.starting import MASTER
from hpcdl.errors import EngineError, HpcdlError
from hpcdl.run_folder import RunFolder
from hpcdl.spec.entry import EntryModel

_FILE_LIMIT = 5 * 1000**3  # bytes; a file of that size still opens on a laptop


def main() -> None:
    """Export as the command line says; a failure is told on standard error."""
    parser = argparse.ArgumentParser(prog="python -m hpcdl.engine.export")
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--step", type=int)
    told = parser.parse_args()
    try:
        step = export(RunFolder(told.run).checkpoints, told.out, told.step)
    except HpcdlError as error:
        print(f"error: {error.message}\n  {error.hint}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    print(f"step {step} written to {told.out}")  # noqa: T201


def export(checkpoints: Path, out: Path, step: int | None = None, limit: int = _FILE_LIMIT) -> int:
    """Write a checkpoint's weights, in fp32, for the library ``transformers``.

    Args:
        checkpoints: of a run.
        out: the folder to write; it appears only when complete.
        step: which; None is the newest.
        limit: bytes of a file.

    Returns:
        The step.

    Raises:
        EngineError: there is no such checkpoint, it is damaged, or ``out`` exists or cannot be written.
    """
    step = _chosen(checkpoints, step)
    source = checkpoints / str(step)
    damage = inspect(source, 0, 1)
    if damage is not None:
        raise EngineError(f"{source / damage.file} {damage.reason}", "export another step with --step N")
    if out.exists():
        raise EngineError(f"{out} exists already", "give the name of a folder that is yet to be made")
    unfinished = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _write(source, read_manifest(source), unfinished, limit)
        unfinished.rename(out)
    except FAILURES as error:
        raise EngineError(f"{out} cannot be written: {error}", "choose another place") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return step


def _chosen(checkpoints: Path, step: int | None) -> int:
    found = complete(path.name for path in checkpoints.iterdir()) if checkpoints.is_dir() else []
    if not found or step not in (None, *found):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise EngineError(
            f"there is {wanted} in {checkpoints}",
            f"there are those of steps {', '.join(map(str, found))}"
            if found
            else "set checkpoint.every in the experiment: the last step is then saved too",
        )
    return found[-1] if step is None else step


def _write(source: Path, manifest: Manifest, out: Path, limit: int) -> None:
    model = manifest.model
    if isinstance(model, EntryModel):
        raise EngineError(
            f"{source} holds the model of {model.entry}, for which there is no layout of Hugging Face",
            "transformers of the families gpt and llama can be exported",
        )
    full = shapes(model)

    def read(name: str) -> torch.Tensor:
        shape = full[name]
        values = torch.empty(shape)
        entry = Entry(
            name=name,
            shape=shape,
            block=tuple((0, size) for size in shape),
            span=(0, values.numel()),
            kinds=(MASTER,),
        )
        fill(source, manifest, [Target(entry, {MASTER: values.view(-1)})])
        return values

    layout.write(out, model, read, limit)


if __name__ == "__main__":
    main()
