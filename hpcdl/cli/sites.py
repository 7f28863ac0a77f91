"""``hpcdl site list``, ``show`` and ``detect``: the machines that are known, and which one this is."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import yaml

from hpcdl.cli import render
from hpcdl.errors import SiteError
from hpcdl.sites import provenance
from hpcdl.sites.load import LOCAL, available, hidden, lineage, load_site
from hpcdl.sites.recognise import Likeness, Surroundings, recognised
from hpcdl.sites.site import Site

_KEY_LINE = re.compile(r"( *)([^\s:#-][^:]*):( |$)")
_STATUS_COLOURS = {"active": "green", "retired": "dim"}  # nearly all are drafts


def list_sites(*, json: bool) -> None:
    """Show every known machine."""
    rows = [_row(load_site(name)) for name in (LOCAL, *sorted(available()))]
    if json:
        render.print_json(rows)
        return
    columns: dict[str, render.Side] = {
        "site": "left", "scheduler": "left", "devices a node": "left", "status": "left", "verified": "left",
        "unverified": "right", "partitions": "left",
    }  # fmt: skip
    render.table(columns, (render.Row(_cells(row), _STATUS_COLOURS.get(row["status"])) for row in rows))


def _row(site: Site) -> dict[str, Any]:
    return {
        "name": site.name,
        "scheduler": site.scheduler.kind,
        "device": site.node(None).device.model,
        "devices_per_node": site.node(None).devices,
        "partitions": list(site.partitions),
        "status": site.identity.status,
        "last_verified": site.identity.last_verified,
        "unverified": len(provenance.doubts(site)),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    devices = f"{row['devices_per_node']} x {row['device']}"
    partitions, verified = ", ".join(row["partitions"]), row["last_verified"] or "-"
    return [
        row["name"],
        row["scheduler"],
        devices,
        row["status"],
        verified,
        str(row["unverified"]),
        partitions,
    ]


def show_site(name: str, field: str | None, *, json: bool) -> None:
    """Show one machine, completely or one field of it."""
    site = load_site(name)
    if field is not None:
        _show_field(site, name, field, json=json)
    elif json:
        render.print_json(site.model_dump(mode="json"))
    else:
        render.raw("".join(_annotated(site, name)))


def _annotated(site: Site, name: str) -> Iterator[str]:
    """A site file again: what the file says, with a mark at each value that nobody verified."""
    files = lineage(name)
    yield from (f"# {'from' if index == 0 else 'extends'} {path}\n" for index, path in enumerate(files))
    yield from (f"# hides {path}\n" for path in (hidden(files[0]) if files else []))
    for section, content in site.model_dump(mode="json", exclude_defaults=True).items():
        text = yaml.safe_dump({section: content}, sort_keys=False, allow_unicode=True)
        yield "\n" * isinstance(content, dict)
        yield from _marked(site, text)


def _marked(site: Site, text: str) -> Iterator[str]:
    """The lines of one section; where each key stands is known by the indentation."""
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = _KEY_LINE.match(line)
        if match is None:
            yield f"{line}\n"
            continue
        indent = len(match[1])
        path = [(depth, key) for depth, key in path if depth < indent] + [(indent, match[2].strip("'\""))]
        keys = tuple(key for _, key in path)
        doubtful = keys[0] != "identity" and provenance.unverified(site, keys)
        yield f"{line}  # unverified\n" if doubtful else f"{line}\n"


def _show_field(site: Site, name: str, field: str, *, json: bool) -> None:
    found, files = provenance.field(site, field), lineage(name)
    facts = {
        "field": found.name,
        "value": found.value,
        "given": found.given,
        "place": found.place,
        "source": found.source,
        "unverified": found.unverified,
        "files": [str(path) for path in files],
        "hides": [str(path) for path in (hidden(files[0]) if files else [])],
    }
    if json:
        render.print_json(facts)
        return
    render.plain(yaml.safe_dump({field: found.value}, sort_keys=False, allow_unicode=True).rstrip(), "bold")
    render.plain(f"stands at    {found.place}" if found.given else "stands at    nowhere: it is the default")
    mark = "unverified" if found.unverified else found.source or "no source is given"
    render.plain(f"source       {mark}", "yellow" if found.unverified or not found.source else "green")
    for index, path in enumerate(files):
        render.plain(f"{'extends' if index else 'file':12} {path}")
    for path in facts["hides"]:
        render.plain(f"hides        {path}", "dim")


def surroundings() -> Surroundings:
    """This host's names and variables."""
    return Surroundings((socket.gethostname(), socket.getfqdn()), os.environ)


def _look() -> tuple[Likeness | None, list[Likeness]]:
    return recognised([load_site(name) for name in sorted(available())], surroundings())


def detect(*, json: bool) -> None:
    """Say which machine this is, and why.

    Raises:
        SiteError: it is none that is known, or cannot be told.
    """
    found, near = _look()
    if json:
        render.print_json(
            {
                "site": found.site if found else None,
                "because": list(found.fits) if found else [],
                "nearly": [{"site": each.site, "fits": each.fits, "differs": each.differs} for each in near],
            }
        )
    if found is None:
        raise _nowhere(near)
    if not json:
        render.plain(found.site, "bold green")
        for reason in found.fits:
            render.plain(f"  {reason}")
        for each in near:
            render.plain(f"nearly {each.site}: {'; '.join((*each.fits, *each.differs))}", "yellow")


def _nowhere(near: list[Likeness]) -> SiteError:
    nearly = [f"nearly {each.site}: {'; '.join((*each.fits, *each.differs))}" for each in near]
    return SiteError(
        "\n".join([f"host {socket.gethostname()} is no machine that has a site file", *nearly]),
        "name one with --site (hpcdl site list), plan for this machine with --site local, or draft a file: "
        "hpcdl site init",
    )


def this_machine() -> str:
    """The name of the machine this is, said on standard error.

    Raises:
        SiteError: it is none that is known, or cannot be told.
    """
    found, near = _look()
    if found is None:
        raise _nowhere(near)
    render.warning(f"site {found.site}: {', '.join(found.fits)}", None)
    return found.site
