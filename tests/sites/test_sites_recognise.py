"""A machine is recognised by what only it has; a laptop is none."""

import re

import pytest

from hpcdl.errors import SiteError
from hpcdl.sites.load import available, load_site
from hpcdl.sites.recognise import Surroundings, likeness, proves_nothing, recognised
from hpcdl.sites.site import Identity

BASE = load_site("generic-slurm")


def machine(name, **identity):
    return BASE.model_copy(update={"name": name, "identity": Identity(**identity)})


NERSC = machine("nersc", hostnames=[r"login\d+(\..*)?"], probe={"NERSC_HOST": "perlmutter"})
POLARIS = machine("polaris", hostnames=[r"polaris-login-\d+(\..*)?"])
VAGUE = machine("vague", hostnames=[r"login\d+"])
SITES = (NERSC, POLARIS, VAGUE, machine("nameless"))


def here(*hosts, **environment):
    return Surroundings(hosts, environment)


def test_a_variable_that_only_one_machine_sets_tells_it_on_every_node():
    for host in ("login12", "nid001234"):
        found, _ = recognised(SITES, here(host, NERSC_HOST="perlmutter"))
        assert found.site == "nersc"
        assert "NERSC_HOST=perlmutter" in found.fits


def test_a_name_that_only_one_machine_has_tells_it_by_any_form():
    assert recognised(SITES, here("x", "polaris-login-02.hsn.alcf.edu"))[0].site == "polaris"


@pytest.mark.parametrize("host", ["login1", "login01", "login23"])
def test_a_laptop_called_login1_is_no_machine_but_nearly_some(host):
    found, near = recognised(SITES, here(host))
    assert found is None
    assert {each.site: each.differs for each in near} == {
        "nersc": (
            "NERSC_HOST is not set, not perlmutter",
            "the host name fits, but many machines have such names",
        ),
        "vague": ("the host name fits, but many machines have such names",),
    }


def test_a_variable_with_another_value_is_another_machine():
    found, near = recognised(SITES, here("polaris-login-01", NERSC_HOST="cori"))
    assert found.site == "polaris"
    assert near == []


def test_two_machines_at_once_are_told_apart_by_nobody():
    twin = machine("twin", probe={"NERSC_HOST": "perlmutter"})
    with pytest.raises(SiteError, match=r"nersc .*; twin ") as refused:
        recognised((*SITES, twin), here("nid1", NERSC_HOST="perlmutter"))
    assert "--site" in refused.value.hint


def test_a_pattern_that_is_none_fits_nothing():
    assert likeness(machine("broken", hostnames=["login("]), here("login(")).certain is False


@pytest.mark.parametrize(
    ("pattern", "weak"),
    [
        (r"login\d+", True),
        (r".*", True),
        (r"n\d+", True),
        (r"login\d+\.frontier.*", False),
        (r"uan\d+", False),
    ],
)
def test_names_that_any_machine_may_have_prove_nothing(pattern, weak):
    assert proves_nothing(pattern) is weak


def test_no_shipped_site_takes_any_host_for_itself():
    sites = [load_site(name) for name in available()]
    for host in ("localhost", "login1", "vm", "my-laptop.local", "node1"):
        assert recognised(sites, here(host))[0] is None


def test_patterns_of_shipped_sites_are_regular_expressions():
    for name in available():
        assert all(re.compile(pattern) for pattern in load_site(name).identity.hostnames)
