"""Finding and reading site files: by name, by path, or ``local`` for the machine one is on."""

from __future__ import annotations

import difflib
from pathlib import Path

from hpcdl import resources
from hpcdl.errors import SiteError, UsageError
from hpcdl.sites.detect import local_site
from hpcdl.sites.site import Site
from hpcdl.spec import load

_SUFFIXES = (".yaml", ".yml")
LOCAL = "local"


def load_site(name_or_path: str) -> Site:
    """The site that a name or a path stands for; ``local`` is detected.

    Raises:
        SiteError: the name is unknown, or the file is wrong (with file:line:column).
    """
    if "/" in name_or_path or name_or_path.endswith(_SUFFIXES):
        return _read(Path(name_or_path))
    if name_or_path == LOCAL:
        return local_site()
    known = available()
    if name_or_path not in known:
        raise SiteError(*_unknown(name_or_path, [LOCAL, *known]))
    return _read(known[name_or_path])


def available() -> dict[str, Path]:
    """Site files by name; a user's own file hides a bundled one of the same name."""
    found: dict[str, Path] = {}
    for folder in resources.search_path("site_configs"):
        for path in sorted(folder.iterdir()):
            if path.suffix in _SUFFIXES:
                found.setdefault(path.stem, path)
    return found


def _read(path: Path) -> Site:
    try:
        return load.validate(load.read(path), Site)
    except UsageError as error:
        raise SiteError(error.message, error.hint) from None


def _unknown(name: str, known: list[str]) -> tuple[str, str]:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(close)}?" if close else f"known sites: {', '.join(known)}"
    return f"there is no site {name!r}; {advice}", "a path to a site file (with a / or .yaml) works too"
