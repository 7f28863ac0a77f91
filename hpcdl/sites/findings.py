"""One thing that is wrong, or doubtful, with a site file."""

from __future__ import annotations

from typing import Literal, NamedTuple

from hpcdl.sites.site import Site


class Finding(NamedTuple):
    """What stands where, what is the matter with it, and the way out."""

    severity: Literal["error", "warning"]  # error: a job that the file allows would fail or be refused
    field: str  # dotted path
    where: str  # file:line:column
    message: str
    hint: str


class Desk:
    """Collects findings about one site, each with its place."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.findings: list[Finding] = []

    def error(self, keys: tuple[str | int, ...], message: str, hint: str) -> None:
        """Something for which a job fails or is refused."""
        self._note("error", keys, message, hint)

    def warning(self, keys: tuple[str | int, ...], message: str, hint: str) -> None:
        """Something doubtful, with which jobs run."""
        self._note("warning", keys, message, hint)

    def _note(
        self, severity: Literal["error", "warning"], keys: tuple[str | int, ...], message: str, hint: str
    ) -> None:
        field = ".".join(map(str, keys))
        finding = Finding(severity, field, self.site.place(*keys), message, hint)
        if finding not in self.findings:
            self.findings.append(finding)
