"""On which of the known machines one is. Pure.

A variable that only one machine sets tells it on every node of it. The name of a host tells it too, but not
every name: ``login1`` is many machines', and may be a laptop's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hpcdl.errors import SiteError
from hpcdl.sites.site import Identity, Site

_ANYBODYS = (
    "localhost",
    "login",
    "login1",
    "login01",
    "login-1",
    "head",
    "headnode",
    "node1",
    "n1",
    "frontend1",
)


@dataclass(frozen=True)
class Surroundings:
    """What can be seen of the machine one is on."""

    hosts: tuple[str, ...]  # names of this host, short and long
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Likeness:
    """How far a machine looks like the one we are on."""

    site: str
    certain: bool
    fits: tuple[str, ...]
    differs: tuple[str, ...]


def proves_nothing(pattern: str) -> bool:
    """Whether a pattern of host names fits names that any machine may have."""
    return any(re.fullmatch(pattern, name) for name in _ANYBODYS)


def likeness(site: Site, here: Surroundings) -> Likeness:
    """What of ``site`` fits ``here`` and what does not."""
    identity = site.identity
    hosts = [(pattern, _matching(pattern, here.hosts)) for pattern in identity.hostnames]
    named = [f"host name {host} fits {pattern!r}" for pattern, host in hosts if host]
    probes = {name: here.environment.get(name) for name in identity.probe}
    told = [f"{name}={value}" for name, value in probes.items() if value == identity.probe[name]]
    wrong = [
        f"{name} is {'not set' if value is None else value}, not {identity.probe[name]}"
        for name, value in probes.items()
        if value != identity.probe[name]
    ]
    by_host = any(host and not proves_nothing(pattern) for pattern, host in hosts)
    certain = not wrong if identity.probe else by_host
    weak = ["the host name fits, but many machines have such names"] if named and not by_host else []
    strange = [] if named or not identity.hostnames else [f"host name {here.hosts[0]} fits no pattern"]
    return Likeness(site.name, certain, (*told, *named), (*wrong, *weak, *strange))


def _matching(pattern: str, hosts: Iterable[str]) -> str | None:
    try:
        return next((host for host in hosts if re.fullmatch(pattern, host)), None)
    except re.error:
        return None


def recognised(sites: Iterable[Site], here: Surroundings) -> tuple[Likeness | None, list[Likeness]]:
    """The one machine that ``here`` certainly is, and those that look like it in part.

    Raises:
        SiteError: it is certainly several.
    """
    alike = [likeness(site, here) for site in sites if _recognisable(site.identity)]
    certain = [each for each in alike if each.certain]
    if len(certain) > 1:
        reasons = "; ".join(f"{each.site} ({', '.join(each.fits)})" for each in certain)
        raise SiteError(
            f"this machine is {reasons}",
            "give --site; and make identity.hostnames or identity.probe of these files tell them apart",
        )
    near = [each for each in alike if each.fits and not each.certain]
    return (certain[0] if certain else None), near


def _recognisable(identity: Identity) -> bool:
    return bool(identity.hostnames or identity.probe)
