import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.errors import InfeasibleError, SiteError, UsageError
from hpcdl.planner.layout import check_precision, layout, spread
from hpcdl.sites.detect import describe
from hpcdl.sites.load import load_site
from hpcdl.spec.job import Resources

POLARIS = load_site("polaris")
PAID = {"account": "m1234", "walltime": "00:10:00"}


def on(site, **asked):
    found = layout(Resources(**asked), site, environment={})
    return found.nodes, found.ranks_per_node, found.cores_per_rank


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"gpus": 4}, (1, 4, 16)),
        ({"gpus": 8}, (2, 4, 16)),
        ({"gpus": 6}, (2, 3, 21)),
        ({"gpus": 7}, (7, 1, 64)),
        ({"nodes": 3}, (3, 4, 16)),
        ({"nodes": 4, "gpus": 8}, (4, 2, 32)),
        ({}, (1, 1, 64)),
    ],
)
def test_devices_go_on_the_fewest_nodes_that_take_them_evenly(perlmutter, asked, expected):
    assert on(perlmutter, **PAID, **asked) == expected


@given(st.integers(1, 5000) | st.integers(1, 10**12))
def test_all_devices_are_placed_and_no_node_gets_too_many(gpus):
    found = spread(Resources(gpus=gpus), POLARIS)
    assert found.ranks == gpus
    assert found.ranks_per_node <= 4
    assert found.cores_per_rank * found.ranks_per_node <= 32


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"nodes": 1, "gpus": 8}, InfeasibleError, "gpus 8 on nodes 1 is 8 a node, but queue debug has 4 devices"),
        ({"gpus": 64}, InfeasibleError, "queue debug takes jobs of at most 8 nodes, but this one needs 16"),
        ({"gpus": 4, "walltime": "02:00:00"}, InfeasibleError, "02:00:00 is over the 00:30:00 that queue debug allows"),
        ({"gpus": 4, "queue": "regluar"}, UsageError, "has no queue 'regluar'; did you mean regular"),
        ({"gpus": 4, "queue": "zzz"}, UsageError, "known: debug, regular"),
        ({"gpus": 4, "account": None}, UsageError, "site perlmutter takes no job without an account"),
    ],
)  # fmt: skip
def test_what_the_site_would_refuse_is_refused_with_its_values(perlmutter, asked, error, words):
    with pytest.raises(error, match=re.escape(words)) as caught:
        on(perlmutter, **{**PAID, **asked})
    assert caught.value.hint or "known" in words or "did you mean" in words


def test_limits_that_depend_on_the_nodes_are_kept():
    """Polaris: 3 h up to 24 nodes, 6 h up to 99, and at least ten nodes in prod."""
    asked = {"account": "p", "queue": "prod", "walltime": "05:00:00"}
    with pytest.raises(InfeasibleError, match="over the 03:00:00 that queue prod allows 24 nodes"):
        on(POLARIS, nodes=24, **asked)
    assert on(POLARIS, nodes=25, **asked)[0] == 25
    with pytest.raises(InfeasibleError, match="at least 10 nodes, but this one has 9") as caught:
        on(POLARIS, nodes=9, **{**asked, "walltime": "01:00:00"})
    assert "debug-scaling" in caught.value.hint


def test_no_queue_for_so_many_nodes_is_said():
    with pytest.raises(InfeasibleError) as caught:
        on(POLARIS, nodes=600, account="p", queue="prod", walltime="01:00:00")
    assert "no queue of site polaris takes 600 nodes" in caught.value.hint


def test_the_account_may_come_from_the_sites_variable(perlmutter):
    asked = Resources(gpus=4, walltime="00:10:00")
    assert layout(asked, perlmutter, environment={"SBATCH_ACCOUNT": "m1"}).nodes == 1
    with pytest.raises(UsageError) as caught:
        layout(asked, perlmutter, environment={"SBATCH_ACCOUNT": ""})
    assert "SBATCH_ACCOUNT" in caught.value.hint


def test_a_queue_may_be_named_as_the_scheduler_does(perlmutter):
    """Key regular80 and key regular both are the QOS regular; the key wins."""
    renamed = perlmutter.model_copy(update={"partitions": {"big": perlmutter.partitions["regular80"]}})
    assert spread(Resources(gpus=4, queue="regular"), renamed).nodes == 1


@pytest.mark.parametrize(
    ("cores", "gpus", "cores_per_rank"), [(2, 4, 1), (8, 4, 2), (64, 4, 16), (64, 64, 1)]
)
def test_ranks_on_a_cpu_share_its_cores(cores, gpus, cores_per_rank):
    assert on(describe(cores, 2**34, []), gpus=gpus) == (1, gpus, cores_per_rank)


def test_nodes_without_a_network_between_them_cannot_be_joined():
    site = describe(2, 2**34, [])
    wider = site.partitions["cpu"].model_copy(update={"max_nodes": 2})
    with pytest.raises(SiteError, match="states no network between nodes, but this job needs 2"):
        on(site.model_copy(update={"partitions": {"cpu": wider}}), gpus=16)


def test_a_precision_without_a_peak_is_refused(perlmutter):
    check_precision("bf16", None, perlmutter)
    volta = perlmutter.nodes["gpu40"].device.model_copy(
        update={"model": "Tesla V100", "peak_tflops": {"fp32": 15.7, "fp16": 125}}
    )
    node = perlmutter.nodes["gpu40"].model_copy(update={"device": volta})
    older = perlmutter.model_copy(update={"nodes": perlmutter.nodes | {"gpu40": node}})
    with pytest.raises(UsageError, match="bf16 is not supported by Tesla V100") as caught:
        check_precision("bf16", None, older)
    assert "fp32 or fp16" in caught.value.hint
