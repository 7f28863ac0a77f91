"""Variables of the ranks: where each comes from, and which are left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError
from schedulers.sample import job, site

from hpcdl.errors import SiteError, UsageError
from hpcdl.schedulers.environment import ATTEMPT, exported, exports, undecided
from hpcdl.schedulers.script import render
from hpcdl.sites.load import load_site

VARIABLES = [
    {
        "name": "NCCL_NET",
        "value": "AWS Libfabric",
        "when": "rocm < 7.1",
        "why": "the fabric",
        "source": "a page",
    },
    {"name": "NCCL_NET", "value": "libfabric", "when": "rocm >= 7.1"},
    {"name": "NCCL_CROSS_NIC", "value": "1", "when": "nodes > 1"},
    {"name": "OMP_NUM_THREADS", "value": "2"},
]
AMD = {"gpu": {"device": {"kind": "gcd", "model": "AMD Instinct MI250X"}}}


def told(work):
    return {
        variable.name: (variable.value, str(variable.origin), variable.note) for variable in exported(work)
    }


def test_every_variable_knows_where_it_comes_from(tmp_path):
    machine = site(environment=VARIABLES, nodes=AMD)
    work = replace(job(tmp_path, machine, environment={"MINE": "x"}), versions={"rocm": "6.4.43482-0f2d6"})
    assert told(work) == {
        "HPCDL_ATTEMPT": ("1", "default", ""),
        "OMP_NUM_THREADS": ("2", "site environment.3", ""),
        "NCCL_NET": ("AWS Libfabric", "site environment.0", "when rocm < 7.1; the fabric; a page"),
        "MINE": ("x", "spec environment.MINE", ""),
    }


def test_what_is_told_is_what_is_exported(tmp_path):
    work = job(tmp_path, site(environment=VARIABLES), nodes=2, environment={"NCCL_CROSS_NIC": "0"})
    assert [(variable.name, variable.value) for variable in exported(work)] == exports(work)
    assert told(work)["NCCL_CROSS_NIC"] == ("0", "spec environment.NCCL_CROSS_NIC", "")
    rendered = render(work)
    for name, value in exports(work)[1:]:
        assert f"\nexport {name}={value}\n" in rendered
    # The script finds out itself which attempt it is, for a scheduler may run a job again.
    assert exports(work)[0] == (ATTEMPT, "1")
    assert '\nexport HPCDL_ATTEMPT="$hpcdl_attempt"\n' in rendered


def test_interfaces_are_told_because_of_the_site(tmp_path):
    node = {"device_nics": [0, 0, 1, 1], "links": {"nics": 2}}
    work = job(tmp_path, site(launch={"nic_bind": "cray-mpich"}, nodes={"gpu": node}), ranks_per_node=4)
    assert told(work)["MPICH_OFI_NIC_MAPPING"] == ("0:0-1; 1:2-3", "site launch.nic_bind", "")


@pytest.mark.parametrize(
    ("versions", "value"), [({"rocm": "7.1.1"}, "libfabric"), ({"rocm": "6.4"}, "AWS Libfabric"), ({}, None)]
)
def test_a_version_decides_where_it_is_known(tmp_path, versions, value):
    work = replace(job(tmp_path, site(environment=VARIABLES, nodes=AMD)), versions=versions)
    assert dict(exports(work)).get("NCCL_NET") == value
    assert len(undecided(work)) == (0 if value else 2)


def test_a_variable_that_nobody_can_decide_about_is_named_with_its_line(tmp_path):
    text = (
        "extends: generic-slurm\nname: mine\nsoftware: {python: /opt/py/bin/python}\nenvironment:\n"
        "  - {name: NCCL_NET_PLUGIN, value: x, when: nodes > 1 and cuda >= 12}\n"
    )
    (tmp_path / "mine.yaml").write_text(text)
    machine = load_site(str(tmp_path / "mine.yaml"))
    work = replace(job(tmp_path, machine, nodes=2), python="/opt/py/bin/python")
    (words,) = undecided(work)
    assert words == (
        f"{tmp_path}/mine.yaml:5:45: NCCL_NET_PLUGIN is left out: nodes > 1 and cuda >= 12 asks for a version "
        "that cannot be read here from /opt/py/bin/python"
    )
    assert undecided(job(tmp_path, machine)) == []  # one node: no version can change that


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "DB_PASS"]
)
def test_a_site_file_holds_no_secret(name):
    with pytest.raises(ValidationError, match=f"{name} looks like a secret"):
        site(environment=[{"name": name, "value": "abc"}])


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "NCCL_NET", "SSH_AUTH_SOCK", "TOKENISER", "KEYBOARD"]
)
def test_what_only_sounds_like_a_secret_may_be_set(tmp_path, name):
    assert (name, "1") in exports(job(tmp_path, site(), environment={name: "1"}))


@pytest.mark.parametrize("name", ["hpcdl_exit", "hpcdl_step_pid"])
def test_variables_of_the_script_are_its_own(tmp_path, name):
    """An experiment that set hpcdl_exit would send the record of the script's end elsewhere."""
    with pytest.raises(UsageError, match=f"environment.{name}: the shell or hpcdl sets this variable itself"):
        exports(job(tmp_path, site(), environment={name: "x"}))


@pytest.mark.parametrize("name", ["hpcdl_exit", "UID", "RANK"])
def test_a_site_sets_none_of_them_either(tmp_path, name):
    text = f"extends: generic-slurm\nname: mine\nenvironment:\n  - {{name: {name}, value: x}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    machine = load_site(str(tmp_path / "mine.yaml"))
    with pytest.raises(SiteError, match=rf"mine.yaml:4:12: the shell or hpcdl sets {name} itself"):
        exports(job(tmp_path, machine))
