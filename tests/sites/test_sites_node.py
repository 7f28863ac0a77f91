"""Nodes in a site file: what is near each device must be there, and be a job's to use."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.errors import SiteError
from hpcdl.sites.load import load_site
from hpcdl.sites.node import Device, parse_cores

NODE = """extends: generic-slurm
name: mine
nodes:
  gpu:
    reserved_cores: [0, 32]
    links: {nics: 2}
    device_nics: [0, 0, 1, 1]
    device_cores: [1-15, 16-31, 33-47, 48-63]
"""


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_maps_of_cores_beside_the_reserved_ones_are_read(tmp_path):
    node = load_site(written(tmp_path, NODE)).nodes["gpu"]
    assert node.device_cores == ["1-15", "16-31", "33-47", "48-63"]
    assert node.usable_cores == 62


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "33-47",
            "32-47",
            "8:19: nodes.gpu.device_cores: device 2 names core 32, which is one of reserved_cores",
        ),
        ("48-63", "48-64", "8:19: nodes.gpu.device_cores: device 3 names core 64, but the cores are 0 to 63"),
        ("16-31", "15-31", "8:19: nodes.gpu.device_cores: devices 0 and 1 share core 15, but not all"),
        (
            "16-31",
            "16..31",
            "8:26: nodes.gpu.device_cores.1: '16..31' is no list of cores; write for example",
        ),
        (
            "nics: 2",
            "nics: 2, nic_names: [mlx5_0, x reboot]",
            "6:42: nodes.gpu.links.nic_names.1 is 'x reboot', but",
        ),
        ("name: mine", "name: Mine!", "2:7: name is 'Mine!', but"),
        (
            "name: mine",
            "name: mine\nrendezvous: {interface: hsn0 hsn1}",
            "3:25: rendezvous.interface is 'hsn0 hsn1', but",
        ),
        (
            "name: mine",
            "name: mine\nrendezvous: {suffix: $(reboot)}",
            "3:22: rendezvous.suffix is '$(reboot)', but",
        ),
        (
            "0, 1, 1",
            "0, 1, 2",
            "7:18: nodes.gpu.device_nics: device 3 names NIC 2, but links.nics is 2: 0 to 1",
        ),
    ],
)
def test_a_map_that_names_what_no_job_has_is_refused_with_its_place(tmp_path, old, new, message):
    with pytest.raises(SiteError) as refused:
        load_site(written(tmp_path, NODE.replace(old, new, 1)))
    assert f"{tmp_path}/mine.yaml:{message}" in str(refused.value)


def test_a_core_that_a_site_reserves_is_refused_in_the_map_it_inherits(tmp_path):
    """Shared hardware, a core reserved on one machine only."""
    (tmp_path / "_board.yaml").write_text(NODE.replace("name: mine\n", ""))
    text = "extends: _board\nname: mine\nnodes: {gpu: {reserved_cores: [0, 32, 48]}}\n"
    with pytest.raises(SiteError, match=r"_board\.yaml:7:19: .*device 3 names core 48, which is one of"):
        load_site(written(tmp_path, text))


@given(st.lists(st.integers(0, 500), unique=True, min_size=1, max_size=20))
def test_a_list_of_cores_keeps_its_order(cores):
    assert parse_cores(",".join(map(str, cores))) == tuple(cores)


@given(st.text(max_size=12))
def test_any_other_text_is_refused(text):
    if re.fullmatch(r"[0-9,-]+", text):
        return
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_cores(text)


@pytest.mark.parametrize(
    ("kind", "model", "vendor"),
    [
        ("gpu", "NVIDIA H100", "nvidia"),
        ("gpu", "Tesla V100-SXM2-16GB", "nvidia"),
        ("gpu", "AMD Instinct MI300A", "amd"),
        ("gcd", "MI250X", "amd"),
        ("tile", "Max 1550", "intel"),
        ("cpu", "AMD EPYC", "none"),
    ],
)
def test_the_maker_is_in_the_name_or_makes_the_kind(kind, model, vendor):
    device = Device(kind=kind, model=model, memory="1GiB", memory_bandwidth=1, peak_tflops={})
    assert device.vendor == vendor
