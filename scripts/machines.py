"""Print the table of docs/machines.md from the site files: python scripts/machines.py."""

from __future__ import annotations

from hpcdl import resources
from hpcdl.sites.load import load_site
from hpcdl.sites.provenance import leaves, origin
from hpcdl.sites.site import Site

_HEAD = ("machine", "scheduler, launcher", "devices a node", "queues", "unverified", "verified")


def rows() -> list[tuple[str, ...]]:
    """The table's head, a line below it, and a row a machine."""
    files = sorted(resources.bundled("site_configs").glob("[!_]*.yaml"))
    machines = [load_site(str(path)) for path in files if not path.stem.startswith("generic-")]
    return [_HEAD, ("---",) * len(_HEAD), *map(_row, machines)]


def _row(site: Site) -> tuple[str, ...]:
    kinds = [f"{node.devices} {node.device.model.partition(' ')[2]}" for node in site.nodes.values()]
    found = [origin(site, path) for path in leaves(site)]
    doubtful = sum(entry is None or entry[1] for entry in found)
    return (
        f"`{site.name}`",
        f"{site.scheduler.kind}, {site.launch.launcher}",
        ", ".join(kinds),
        str(len(site.partitions)),
        f"{doubtful} of {len(found)}",
        site.identity.last_verified or site.identity.status,
    )


if __name__ == "__main__":
    for row in rows():
        print(f"| {' | '.join(row)} |")
