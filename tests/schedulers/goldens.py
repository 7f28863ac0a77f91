"""Golden scripts: what every shipped site gives for one node, for two, and for as many as it takes.

``python -m tests.schedulers.goldens`` writes them anew to ``tests/schedulers/golden/SITE/SIZE.sh``; look at what
changed before you commit it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hpcdl import resources
from hpcdl.planner.layout import layout
from hpcdl.schedulers.base import Job
from hpcdl.schedulers.known import SCHEDULERS
from hpcdl.schedulers.script import render
from hpcdl.sites.load import load_site
from hpcdl.sites.site import Site
from hpcdl.spec.job import Resources
from hpcdl.units import format_walltime, parse_walltime

from .sample import job

FOLDER = Path(__file__).parent / "golden"
MACHINES = {
    path.stem: load_site(str(path)) for path in sorted(resources.bundled("site_configs").glob("[!_]*.yaml"))
}

_MANY = 64  # nodes, where no limit is known
_MINUTES = 30  # of walltime, if that is not too short
_VERSIONS = {"nvidia": {"cuda": "12.8"}, "amd": {"rocm": "7.1"}}
_OWN_TEMPLATES = {"XDG_CONFIG_HOME": "/nonexistent"}


def scripts() -> Iterator[tuple[Path, str]]:
    """Every golden script: its path below FOLDER, and its text."""
    for name, machine in MACHINES.items():
        if machine.scheduler.kind in SCHEDULERS:
            for size, (queue, nodes) in sizes(machine).items():
                yield Path(name) / f"{size}.sh", render(wanted(machine, queue, nodes), _OWN_TEMPLATES)


def sizes(machine: Site) -> dict[str, tuple[str, int]]:
    """Queue and nodes of each size; many are the most that the widest queue takes."""
    default = machine.default_partition
    widest = max(machine.partitions, key=lambda key: machine.partitions[key].max_nodes or _MANY)
    most = machine.partitions[widest].max_nodes or _MANY
    return {"one": (default, 1), "two": (default, 2), "many": (widest, most)}


def wanted(machine: Site, queue: str, nodes: int) -> Job:
    """A job of whole nodes, placed as the planner places it."""
    least = machine.partitions[queue].min_walltime
    walltime = format_walltime(max(_MINUTES * 60, parse_walltime(least) if least else 0))
    asked = {"queue": queue, "account": "physics", "walltime": walltime}
    work = job(Path("/scratch/runs/sample-1"), machine, nodes=nodes, python="/opt/hpcdl/bin/python", **asked)
    places = layout(Resources(nodes=nodes, **asked), machine)
    run = work.run.model_copy(update={"layout": places, "device": "cuda"})
    return replace(work, run=run, versions=_VERSIONS.get(machine.node(queue).device.vendor, {}))


def _write() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for path, text in scripts():
        (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    _write()
