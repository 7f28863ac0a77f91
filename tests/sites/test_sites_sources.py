"""Every value of a shipped site file says where it was read and when, or that it was not."""

from __future__ import annotations

import re

import pytest

from hpcdl.sites.load import available, load_site
from hpcdl.sites.provenance import covers, leaves, origin
from hpcdl.sites.site import Site

SITES = {name: load_site(str(path)) for name, path in available().items()}
MACHINES = {name: site for name, site in SITES.items() if not name.startswith("generic-")}
UNDATED = ("undated", "chosen for hpcdl", "man page of ", "commit ")


def test_at_least_24_machines_ship():
    assert len(MACHINES) >= 24


@pytest.mark.parametrize("name", MACHINES)
def test_every_value_is_covered_by_a_source_or_called_unverified(name):
    site = MACHINES[name]
    assert [".".join(path) for path in leaves(site) if origin(site, path) is None] == []


@pytest.mark.parametrize("name", MACHINES)
def test_no_path_points_nowhere(name):
    site = MACHINES[name]
    named = [*site.identity.sources, *site.identity.unverified]
    assert [path for path in named if not any(covers(path, leaf) for leaf in leaves(site))] == []


def test_every_source_is_that_of_some_value():
    """One that closer paths outdo everywhere tells a reader what is not so. A part's may be outdone in a machine."""
    found = [origin(site, path) for site in MACHINES.values() for path in leaves(site)]
    used = {source for source, _ in filter(None, found)}
    named = {(name, text) for name, site in MACHINES.items() for text in site.identity.sources.values()}
    assert [(name, text) for name, text in sorted(named) if text not in used] == []


@pytest.mark.parametrize("name", MACHINES)
def test_every_source_says_when(name):
    texts = [
        *MACHINES[name].identity.sources.values(),
        *(entry.source for entry in MACHINES[name].environment if entry.source),
    ]
    undated = [
        text for text in texts if not re.search(r"\b20\d\d\b", text) and not any(w in text for w in UNDATED)
    ]
    assert undated == []


@pytest.mark.parametrize("name", MACHINES)
def test_nobody_claims_to_have_run_there(name):
    identity = MACHINES[name].identity
    assert identity.last_verified is None
    assert identity.status == ("retired" if name in ("summit", "lassen") else "draft")


def told(**identity) -> Site:
    content = SITES["generic-slurm"].model_dump(exclude_unset=True) | {"identity": identity}
    return Site.model_validate(content)


CORES, DEVICES = ("nodes", "gpu", "cores"), ("nodes", "gpu", "devices")


def test_longest_path_counts():
    site = told(sources={"nodes": "a page 2026", "nodes.gpu.cores": "another 2026"}, unverified=["nodes.gpu"])
    assert origin(site, CORES) == ("another 2026", False)
    assert origin(site, DEVICES) == (None, True)
    assert origin(site, ("network", "topology")) is None


def test_of_paths_of_one_length_the_literal_one_counts_and_then_doubt():
    site = told(sources={"nodes.gpu.cores": "a page 2026", "nodes.gpu.devices": "a page 2026"},
                unverified=["nodes.*.cores", "nodes.gpu.devices"])  # fmt: skip
    assert origin(site, CORES) == ("a page 2026", False)
    assert origin(site, DEVICES) == (None, True)


def test_path_begins_at_the_top_of_the_file():
    """``network`` is not ``scheduler.network``."""
    assert not covers("network", ("scheduler", "network"))
    assert covers("nodes.*.links", ("nodes", "gpu", "links", "pairs", "0-1"))
