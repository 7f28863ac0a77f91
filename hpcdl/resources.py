"""Where the bundled templates and site files are: the only place that looks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hpcdl.errors import HpcdlError

_PACKAGE = Path(__file__).resolve().parent


def bundled(kind: str) -> Path:
    """The folder of bundled ``templates`` or ``site_configs``.

    Installed, they lie inside the package; in a checkout, beside it.

    Raises:
        HpcdlError: in neither place.
    """
    installed = _PACKAGE / "_data" / kind
    if installed.is_dir():
        return installed
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / kind).is_dir():
        return checkout / kind
    raise HpcdlError(
        f"the bundled folder {kind!r} is neither in {installed} nor in {checkout / kind}",
        "the installation is damaged; install hpcdl again",
    )


def search_path(kind: str, environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Folders that may hold files of ``kind``, the user's first: ``$HPCDL_PATH``, configuration, bundled."""
    own = [Path(entry) / kind for entry in environment.get("HPCDL_PATH", "").split(os.pathsep) if entry]
    config = Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "hpcdl" / kind
    return [folder for folder in (*own, config) if folder.is_dir()] + [bundled(kind)]
