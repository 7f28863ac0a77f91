"""Bringing a run home: one archive with what is needed to read or report it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder

INDEX = "INDEX.txt"


def contents(folder: RunFolder) -> list[Path]:
    """The files of a run but for checkpoints and prepared data, which are large and stay where they are."""
    files = (path for path in folder.path.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path for path in files if not {folder.checkpoints, folder.data} & set(path.parents))


def pack(folder: RunFolder, target: Path, progress: Callable[[int, int], None]) -> int:
    """Write ``target`` (.tar.gz) with the run's files under its id and an index; return their number.

    Args:
        folder: the run.
        target: the archive; it appears only when complete.
        progress: told files done and files in all.

    Raises:
        UsageError: the archive cannot be written.
    """
    files = contents(folder)
    temporary = target.with_name(f".{target.name}.part")
    try:
        with tarfile.open(temporary, "w:gz") as archive:
            _add_index(archive, folder, files)
            for done, path in enumerate(files, start=1):
                archive.add(path, arcname=f"{folder.path.name}/{path.relative_to(folder.path)}")
                progress(done, len(files))
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(
            f"cannot write {target}: {error.strerror or error}",
            "choose another place with --output FILE.tar.gz",
        ) from None
    return len(files)


def _add_index(archive: tarfile.TarFile, folder: RunFolder, files: list[Path]) -> None:
    lines = [f"{path.stat().st_size:>12}  {path.relative_to(folder.path)}" for path in files]
    text = (
        f"run {folder.path.name}: bytes and name of every file; checkpoints and prepared data are left out\n"
    )
    content = (text + "\n".join(lines) + "\n").encode()
    entry = tarfile.TarInfo(f"{folder.path.name}/{INDEX}")
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
