"""``hpcdl site check``: whether site files are right in themselves, and right about the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hpcdl.cli import render
from hpcdl.cli.sites import surroundings
from hpcdl.errors import SchedulerError, SiteError
from hpcdl.sites.crosscheck import crosscheck
from hpcdl.sites.findings import Finding
from hpcdl.sites.load import available, load_site
from hpcdl.sites.recognise import likeness
from hpcdl.sites.site import Site
from hpcdl.survey import asking
from hpcdl.survey.compare import compare
from hpcdl.survey.seen import Machine

_COLOURS = {"error": "red", "warning": "yellow"}


@dataclass
class _Result:
    """What was found about one file."""

    name: str
    about_file: list[Finding]
    about_machine: list[Finding] = field(default_factory=list)
    machine: Machine | None = None
    why_not: str = ""  # it was not compared
    refusal: SchedulerError | None = None  # of the scheduler that was asked

    @property
    def findings(self) -> list[Finding]:
        return [*self.about_file, *self.about_machine]

    def count(self, severity: str) -> int:
        """How many findings of one severity there are."""
        return sum(finding.severity == severity for finding in self.findings)


def check(names: Sequence[str], *, probe: bool | None, json: bool) -> None:
    """Check site files, all that are known if none is named.

    Args:
        names: names or files.
        probe: whether to compare with the machine one is on; None: where it is the machine of the file.
        json: whether to print JSON.

    Raises:
        SiteError: something is wrong; it has been shown.
        SchedulerError: the scheduler was to be asked and cannot be.
    """
    results = []
    for name in names or sorted(available()):
        result = _check(name, probe=probe)
        results.append(result)
        if not json:
            _show(result)
    if json:
        render.print_json(_as_json(results))
    for refused in (result.refusal for result in results if result.refusal):
        raise refused
    errors = sum(result.count("error") for result in results)
    if errors:
        raise SiteError(
            f"{_counted(errors, 'error')} in {_counted(len(results), 'site file')}",
            "`hpcdl schema site` describes every key",
        )


def _check(name: str, *, probe: bool | None) -> _Result:
    try:
        site = load_site(name)
    except SiteError as error:
        return _Result(
            name,
            [_refused(line, error.hint) for line in error.message.splitlines()],
            why_not="the file is not valid",
        )
    result = _Result(site.name, crosscheck(site))
    result.why_not = _why_not(site, probe=probe)
    if not result.why_not:
        _compare(site, result)
    return result


def _compare(site: Site, result: _Result) -> None:
    try:
        result.machine = asking.ask(site.scheduler.kind)
    except SchedulerError as error:
        result.refusal, result.why_not = error, "the scheduler gave no answer"
        return
    result.about_machine = compare(site, result.machine)


def _refused(line: str, hint: str | None) -> Finding:
    """What the schema refused, as a finding."""
    where, separator, message = line.partition(": ")
    place, text = (where, message) if separator else ("", line)
    return Finding("error", "", place, text, hint or "")


def _why_not(site: Site, *, probe: bool | None) -> str:
    """Why a file is not compared with the machine one is on; empty if it is."""
    kind, identity = site.scheduler.kind, site.identity
    if probe is not None:
        return "" if probe else "not asked for"
    if kind not in asking.KINDS:
        return f"a machine of scheduler {kind} cannot be asked"
    if kind not in asking.here():
        return f"no {kind} here"
    if not identity.hostnames and not identity.probe:
        return "identity does not say how to recognise it; --probe compares with this one"
    if likeness(site, surroundings()).certain:
        return ""
    return "this is another, as far as its host name and variables tell; --probe compares anyway"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _show(result: _Result) -> None:
    machine = result.machine
    compared = (
        f"compared with {machine.name}, {machine.kind} {machine.version}, {len(machine.hosts)} nodes"
        if machine
        else f"not compared with a machine: {result.why_not}"
    )
    errors, warnings = result.count("error"), result.count("warning")
    colour = "red" if errors else "yellow" if warnings else "green"
    counted = f"{_counted(errors, 'error')}, {_counted(warnings, 'warning')}"
    render.plain(f"{result.name}: {counted}; {compared}", f"bold {colour}")
    for finding in result.findings:
        told = ": ".join(filter(None, (finding.severity, finding.where, finding.message)))
        render.plain(f"  {told}", _COLOURS[finding.severity])
        if finding.hint:
            render.plain(f"    {finding.hint}", "dim")


def _as_json(results: Sequence[_Result]) -> list[dict[str, Any]]:
    return [
        {
            "site": result.name,
            "errors": result.count("error"),
            "warnings": result.count("warning"),
            "machine": _machine(result.machine),
            "not_compared": result.why_not or None,
            "findings": [
                {**finding._asdict(), "about": about}
                for about, found in (("file", result.about_file), ("machine", result.about_machine))
                for finding in found
            ],
        }
        for result in results
    ]


def _machine(machine: Machine | None) -> dict[str, Any] | None:
    if machine is None:
        return None
    return {
        "name": machine.name,
        "scheduler": machine.kind,
        "version": machine.version,
        "nodes": len(machine.hosts),
        "queues": [queue.name for queue in machine.queues],
        "max_array": machine.max_array,
    }
