"""Sweeps of the small experiment, prepared and sent from a terminal of these tests."""

from __future__ import annotations

from pathlib import Path

from hpcdl import resources
from hpcdl.workflow.studies import chaining, studying
from hpcdl.workflow.sweeps import dispatching, sweeping
from hpcdl.workflow.sweeps.dispatching import WAITING


def swept(terminal, sweep, *, site="generic-slurm", changes=()):
    terminal.file.write_text(terminal.file.read_text().partition("\nsweep:")[0] + f"\nsweep: {sweep}\n")
    request = studying.Request(terminal.file, site, changes)
    return sweeping.understand(request, lambda done, total: None)


def sent(terminal, sweep, after=None, **how):
    """The group, and what became of its points; ``after`` as in ``--after``."""
    found = swept(terminal, sweep, **how)
    awaited = chaining.awaited(after, terminal.runs, found.site) if after else None
    group = sweeping.prepare(found, terminal.runs, awaited)
    return group, dispatching.send(group, dispatching.chosen(group.folders, WAITING))


def scripts(terminal):
    """The scripts as submitted, in order."""
    return [Path(line.split()[-1]).read_text() for line in terminal.submitted()]


def directive(script, option):
    found = [line for line in script.splitlines() if line.startswith(f"#SBATCH {option}")]
    return found[0].removeprefix(f"#SBATCH {option}") if found else None


def small_site(terminal, old, new):
    site = terminal.folder / "small.yaml"
    bundled = resources.bundled("site_configs") / "generic-slurm.yaml"
    text = bundled.read_text()
    assert old in text
    site.write_text(text.replace(old, new, 1))
    return str(site)
