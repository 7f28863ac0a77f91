"""Profiles: those that are shipped, and those that somebody measured."""

import pytest

from hpcdl.errors import UsageError
from hpcdl.sites.measured import measured_products
from hpcdl.sites.node import Device
from hpcdl.sites.profile import default_profile, read_profile

A100 = Device(
    kind="gpu", model="NVIDIA A100", memory="80GiB", memory_bandwidth=2039, peak_tflops={"bf16": 312}
)


def written(folder, text):
    path = folder / "profile.yaml"
    path.write_text(text)
    return path


def test_a_measured_run_replaces_what_it_measured(tmp_path):
    path = written(tmp_path, "site_efficiency: 0.75\nsource: our own run\ndate: 2026-11-21\n")
    found, shipped = read_profile(path, A100), default_profile(A100)
    changed = {"site_efficiency": 0.75, "source": "our own run", "date": "2026-11-21"}
    assert found == shipped.model_copy(update=changed)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("gemm_efficiency: 1.5\nsource: run\ndate: 2026-11\n", "profile.yaml:1:18: gemm_efficiency is 1.5"),
        ("gemm_eficiency: 0.5\nsource: run\ndate: 2026-11\n", "did you mean 'gemm_efficiency'"),
        ("site_efficiency: 0.9\ndate: 2026-11\n", "source is missing"),
        ("source: run\ndate: yesterday\n", "profile.yaml:2:7: date"),
        ("- 1\n", "profile.yaml:1:1"),
    ],
)
def test_a_profile_that_is_wrong_says_where_and_how(tmp_path, text, complaint):
    with pytest.raises(UsageError) as caught:
        read_profile(written(tmp_path, text), A100)
    assert complaint in caught.value.message


@pytest.mark.parametrize(
    ("model", "processors", "products"),
    [
        ("NVIDIA A100-SXM4-40GB", 108, "A100"),
        ("NVIDIA H100 80GB HBM3", 132, ""),
        ("NVIDIA H200", 132, ""),
        ("NVIDIA GH200 480GB", 132, ""),
        ("NVIDIA B200", 148, "B200"),
        ("AMD Instinct MI250X", 110, ""),
        ("Tesla V100-SXM2-16GB", 80, ""),
    ],
)
def test_each_kind_of_device_has_its_processors_and_its_measured_products(model, processors, products):
    profile = default_profile(A100.model_copy(update={"model": model}))
    assert (profile.processors, profile.products) == (processors, products)
    assert (measured_products(products) is not None) == bool(products)


def test_measured_products_have_a_source_and_shares_below_one():
    for name, count in (("A100", 183), ("B200", 432)):
        found = measured_products(name)
        assert len(found.sizes) == len(found.ends) == len(found.efficiency) == count
        assert (found.sizes >= 1).all()
        assert ((found.efficiency > 0) & (found.efficiency < 1)).all()
        assert "SimuMax" in found.source
