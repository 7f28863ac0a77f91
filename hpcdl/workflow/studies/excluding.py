"""Which nodes a job is told to leave out: those the user named, and those found to be bad. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcdl.errors import UsageError
from hpcdl.runs.nodes.bad_nodes import BadNode
from hpcdl.schedulers.known import scheduler
from hpcdl.sites.site import Site
from hpcdl.spec.job import Resources

MOST = 8
"""Nodes that are left out without being asked: a run must not argue itself out of a machine."""


@dataclass(frozen=True)
class Exclusion:
    """What becomes of the bad nodes of a run.

    Args:
        nodes: that the job must not get.
        left_in: bad ones that it may get all the same.
        why: of ``left_in``.
    """

    nodes: tuple[str, ...] = ()
    left_in: tuple[str, ...] = ()
    why: str = ""


def exclusion(resources: Resources, bad: Sequence[BadNode], site: Site) -> Exclusion:
    """Which nodes the next job of a run is told to leave out.

    Args:
        resources: which the run asks for.
        bad: those named in the course of the run, the newest last.
        site: where it runs.

    Raises:
        UsageError: it names nodes itself, where no job can be told.
    """
    asked = resources.exclude
    found = [node.host for node in bad if node.host not in asked]
    reason = _unable(site)
    if reason and asked:
        raise UsageError(
            f"resources.exclude: {', '.join(asked)} cannot be left out: {reason}",
            "take resources.exclude out, or ask the site to take the node out of service",
        )
    if not resources.exclude_bad:
        reason = "resources.exclude_bad is false"
    if reason:
        return Exclusion(asked, tuple(found), reason if found else "")
    older, newest = found[:-MOST], found[-MOST:]
    why = f"of its own a run leaves out the {MOST} nodes that were found last" if older else ""
    return Exclusion(tuple(dict.fromkeys((*asked, *newest))), tuple(older), why)


def _unable(site: Site) -> str:
    """Why no job can be told; empty where it can."""
    kind = site.scheduler.kind
    if not scheduler(kind).EXCLUDES:
        return _WORDS[kind]
    if not site.policy.node_exclusion:
        return f"site {site.name} takes no job that names nodes ({site.place('policy', 'node_exclusion')})"
    return ""


_WORDS = {
    "pbs": "PBS has no word for a node that a job must not get: select can ask for hosts, not refuse them",
    "local": "there is one machine only",
}
