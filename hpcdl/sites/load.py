"""Finding and reading site files: by name, by path, or ``local`` for the machine one is on."""

from __future__ import annotations

import difflib
from functools import reduce
from pathlib import Path

from hpcdl import resources
from hpcdl.errors import SiteError, UsageError
from hpcdl.paths import is_file
from hpcdl.sites.detect import local_site
from hpcdl.sites.inherit import inherit
from hpcdl.sites.site import Site
from hpcdl.spec import load

_SUFFIXES = (".yaml", ".yml")
_PART = "_"  # a file whose name begins so is no machine, only what machines begin with
LOCAL = "local"


def load_site(name_or_path: str) -> Site:
    """The site that a name or a path stands for; ``local`` is detected.

    Raises:
        SiteError: the name is unknown, or the file is wrong (with file:line:column).
    """
    path = _path(name_or_path)
    return local_site() if path is None else _read(path)


def _path(name_or_path: str) -> Path | None:
    """The file of a site; None for ``local``, which has none."""
    if "/" in name_or_path or name_or_path.endswith(_SUFFIXES):
        return Path(name_or_path)
    if name_or_path == LOCAL:
        return None
    known = available()
    found = known.get(name_or_path) or _other_name(name_or_path, known)
    if found is None:
        raise SiteError(*_unknown(name_or_path, [LOCAL, *known]))
    return found


def _other_name(name: str, known: dict[str, Path]) -> Path | None:
    """The file of the machine that has ``name`` among its aliases."""
    return next((path for path in known.values() if name in _aliases(path)), None)


def _aliases(path: Path) -> list[str]:
    """Other names of the machine in a file; none where the file is wrong, as who asks for it is told."""
    try:
        return _read(path).identity.aliases
    except SiteError:
        return []


def available() -> dict[str, Path]:
    """Site files by name; a user's own file hides a bundled one of the same name."""
    found: dict[str, Path] = {}
    for folder in resources.search_path("site_configs"):
        for path in sorted(folder.iterdir()):
            if path.suffix in _SUFFIXES and not path.stem.startswith(_PART):
                found.setdefault(path.stem, path)
    return found


def lineage(name_or_path: str) -> list[Path]:
    """The file that a site is read from, then all that it extends, the nearest first; none for ``local``.

    Raises:
        SiteError: the name is unknown, or a file is wrong.
    """
    path = _path(name_or_path)
    try:
        document = None if path is None else _document(path, ())
    except UsageError as error:
        raise SiteError(error.message, error.hint) from None
    return [Path(source) for source in (document.source, *document.bases)] if document else []


def hidden(path: Path) -> list[Path]:
    """Further files of the same name along the search path, which ``path`` hides."""
    found = [
        folder / f"{path.stem}{suffix}"
        for folder in resources.search_path("site_configs")
        for suffix in _SUFFIXES
    ]
    files = [file for file in found if file.is_file()]
    here = [file.resolve() for file in files]
    return files[here.index(path.resolve()) + 1 :] if path.resolve() in here else []


def _read(path: Path) -> Site:
    try:
        document = _document(path, ())
        return load.validate(document, Site).read_at(document)
    except UsageError as error:
        raise SiteError(error.message, error.hint) from None


def _document(path: Path, seen: tuple[Path, ...]) -> load.Document:
    """A file's content on top of what it extends."""
    document = load.read(path)
    bases = [_document(base, (*seen, path.resolve())) for base in _extended(document, path, seen)]
    return reduce(inherit, [*bases, document])


def _extended(document: load.Document, path: Path, seen: tuple[Path, ...]) -> list[Path]:
    """The files that ``document``, read from ``path``, extends."""
    given = document.content.get("extends") if isinstance(document.content, dict) else None
    names = given if isinstance(given, list) else [] if given is None else [given]
    bases = [_base(str(name), path, seen) for name in names]
    for name, base in zip(names, bases, strict=True):
        if base is None or base in seen:
            why = "extends this file in its turn" if base else _missing(str(name), path)
            raise SiteError(
                f"{document.place(('extends',))}: {name!r} {why}",
                "name a site, or a file that begins with _, from the folders of site files; without .yaml",
            )
    return [base for base in bases if base is not None]


def _base(name: str, path: Path, seen: tuple[Path, ...]) -> Path | None:
    """The file that ``extends: name`` in ``path`` means: beside it first, then as sites are looked for.

    Never ``path`` itself: a user's own file may extend another of its name, and of several of one name each
    the next, so none of ``seen``, which extend ``path``, is meant by it.
    """
    passed = [path.resolve(), *(seen if name == path.stem else ())]
    folders = [path.parent, *resources.search_path("site_configs")]
    candidates = [folder / f"{name}{suffix}" for folder in folders for suffix in _SUFFIXES]
    files = [file.resolve() for file in candidates if is_file(file)]
    return next((file for file in files if file not in passed), None)


def _missing(name: str, path: Path) -> str:
    """Why ``name`` is nothing that ``path`` can extend."""
    if name == path.stem:
        return "is the name of this file, and there is no further one of it"
    close = difflib.get_close_matches(name, available(), n=1)
    return f"is not among the site files{f'; did you mean {close[0]!r}?' if close else ''}"


def _unknown(name: str, known: list[str]) -> tuple[str, str]:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(close)}?" if close else f"known sites: {', '.join(known)}"
    return f"there is no site {name!r}; {advice}", "a path to a site file (with a / or .yaml) works too"
