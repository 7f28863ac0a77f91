"""The report as one file that a browser opens without a network: data, style and program in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hpcdl import resources
from hpcdl.runs.archive.secrets import Cleaner, secrets_of
from hpcdl.runs.reports.comparing import differing, figures, written
from hpcdl.runs.reports.contents import CURVES, view
from hpcdl.runs.reports.recorded import Recorded

# What could end the element that holds the data, or is a line's end to JavaScript.
_ESCAPES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def page(runs: Sequence[Recorded], now: float) -> str:
    """HTML of one run, or of several over each other; ``now`` is the Unix time."""
    shown = {
        "runs": [view(each, now) for each in runs],
        "titles": CURVES,
        "compared": _compared(runs) if len(runs) > 1 else [],
        "time": now,
        "version": version("hpcdl"),
    }
    folder = resources.bundled("templates")
    jinja = Environment(loader=FileSystemLoader(folder), undefined=StrictUndefined, autoescape=True)
    names = ", ".join(each.name for each in runs[:3]) + (" …" if len(runs) > 3 else "")
    return jinja.get_template("report.html.j2").render(
        title=f"{names} – hpcdl",
        data=Markup(embedded(_cleaned(shown, Cleaner(secrets_of(os.environ))))),  # noqa: S704 - it holds no < and no &
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - our own
        program=Markup((folder / "report.js").read_text(encoding="utf-8")),  # noqa: S704 - our own
    )


def embedded(value: Any) -> str:
    """JSON that may stand inside a script element.

    Raises:
        ValueError: a number in it is not finite, which no browser would read.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _cleaned(value: Any, cleaner: Cleaner) -> Any:
    """The same without secrets, as in an archive: a report is for mailing."""
    if isinstance(value, str):
        return cleaner.cleaned_text(value)[0]
    if isinstance(value, Mapping):
        return {key: _cleaned(each, cleaner) for key, each in value.items()}
    return [_cleaned(each, cleaner) for each in value] if isinstance(value, list | tuple) else value


def _compared(runs: Sequence[Recorded]) -> list[dict[str, Any]]:
    asked = [
        {"name": key, "values": [written(value) for value in values], "best": []}
        for key, values in differing(runs).items()
    ]
    return asked + [{"name": each.name, "values": each.words(), "best": each.best} for each in figures(runs)]
