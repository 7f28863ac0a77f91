"""``hpcdl schema`` and ``hpcdl site``: what files look like and which machines are known."""

from __future__ import annotations

from pydantic import BaseModel

from hpcdl.cli import render
from hpcdl.errors import UsageError
from hpcdl.sites.load import available, load_site
from hpcdl.sites.site import Site
from hpcdl.spec.experiment import Experiment

_SCHEMAS: dict[str, type[BaseModel]] = {"experiment": Experiment, "site": Site}


def schema(kind: str) -> None:
    """Print the JSON Schema of one kind of file."""
    if kind not in _SCHEMAS:
        raise UsageError(f"there is no schema {kind!r}; known: {', '.join(_SCHEMAS)}")
    render.print_json(_SCHEMAS[kind].model_json_schema())


def list_sites(*, json: bool) -> None:
    """Show every known machine."""
    sites = [load_site(name) for name in ("local", *sorted(available()))]
    rows = [
        {
            "name": site.name,
            "scheduler": site.scheduler.kind,
            "device": site.node(None).device.model,
            "devices_per_node": site.node(None).devices,
            "partitions": list(site.partitions),
            "status": site.identity.status,
            "last_verified": site.identity.last_verified,
        }
        for site in sites
    ]
    if json:
        render.print_json(rows)
    else:
        render.sites(rows)


def show_site(name: str, *, json: bool) -> None:
    """Show one machine, completely."""
    site = load_site(name)
    if json:
        render.print_json(site.model_dump(mode="json"))
    else:
        render.site(site)
